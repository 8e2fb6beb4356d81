package org.mamba4j.text;

import java.time.Duration;
import java.util.Arrays;
import java.util.Set;
import org.mamba4j.Sampler;

/** One generation, token by token: {@link #next} computes as far as the next token and no further. */
final class Generation implements AutoCloseable {
  static final int PREFILL_CHUNK = 512;
  private static final int NO_TOKEN = -1;

  /** Feeds tokens to a sequence. */
  @FunctionalInterface
  interface Forward {
    /**
     * Feeds {@code ids[from..from + length)} and returns the token that {@code sampler} chooses after them. Without a
     * sampler, null, they are only fed.
     */
    int next(Sampler sampler, int[] ids, int from, int length);
  }

  private final Forward forward;
  private final Runnable release;
  private final GenerationOptions options;
  private final Set<Integer> stopTokens;
  private final int[] prompt;
  private final Sampler sampler;
  private final StreamDecoder decoder; // null: no tokenizer, no text
  private final StopStrings stopStrings;
  private final StringBuilder text = new StringBuilder();
  private int[] tokens = new int[16];
  private int count;
  private FinishReason finishReason;
  private long firstNanos;
  private long decodeNanos;
  private volatile boolean aborted;

  /**
   * @param vocabSize ids that may be chosen
   * @param decoder follows the prompt; null without tokenizer
   * @param release called on close, possibly more than once
   */
  Generation(
      Forward forward,
      Runnable release,
      int[] prompt,
      int vocabSize,
      StreamDecoder decoder,
      Set<Integer> stopTokens,
      GenerationOptions options) {
    this.forward = forward;
    this.release = release;
    this.prompt = prompt;
    this.decoder = decoder;
    this.stopTokens = stopTokens;
    this.options = options;
    this.stopStrings = new StopStrings(options.stopStrings());
    this.sampler = new Sampler(options.sampling(), vocabSize);
    sampler.observe(prompt);
  }

  /** The next token, or null when the generation is over. */
  GeneratedToken next() {
    if (finishReason != null) {
      return null;
    }
    long start = System.nanoTime();
    int id = count == 0 ? prefill() : cancelled() ? NO_TOKEN : forward.next(sampler, tokens, count - 1, 1);
    if (id == NO_TOKEN) {
      finishReason = FinishReason.CANCELLED;
      text.append(stopStrings.accept(decoder == null ? "" : decoder.flush())).append(stopStrings.flush());
      return null;
    }
    if (count == tokens.length) {
      tokens = Arrays.copyOf(tokens, 2 * count);
    }
    tokens[count++] = id;
    String fresh = takeText(id);
    text.append(fresh);
    long nanos = System.nanoTime() - start;
    if (count == 1) {
      firstNanos = nanos;
    } else {
      decodeNanos += nanos;
    }
    return new GeneratedToken(id, fresh, sampler.logProb(), count - 1);
  }

  private int prefill() {
    int id = NO_TOKEN;
    for (int from = 0; from < prompt.length; from += PREFILL_CHUNK) {
      if (cancelled()) {
        return NO_TOKEN;
      }
      boolean last = prompt.length - from <= PREFILL_CHUNK;
      id = forward.next(last ? sampler : null, prompt, from, Math.min(PREFILL_CHUNK, prompt.length - from));
    }
    return cancelled() ? NO_TOKEN : id;
  }

  private boolean cancelled() {
    return aborted || options.cancellation().isCancelled();
  }

  private String takeText(int id) {
    boolean stopToken = stopTokens.contains(id);
    boolean last = stopToken || count == options.maxNewTokens();
    String piece = "";
    if (decoder != null) {
      piece = stopToken ? "" : decoder.next(id);
      piece = last ? piece + decoder.flush() : piece;
    }
    String fresh = stopStrings.accept(piece);
    if (stopStrings.found()) {
      finishReason = FinishReason.STOP_STRING;
    } else if (last) {
      finishReason = stopToken ? FinishReason.STOP_TOKEN : FinishReason.LENGTH;
      fresh += stopStrings.flush();
    }
    return fresh;
  }

  boolean isFinished() {
    return finishReason != null;
  }

  /** Makes {@link #next}, also one that runs in another thread, stop as if cancelled. */
  void abort() {
    aborted = true;
  }

  GenerationResult result() {
    double tokensPerSecond = count < 2 ? 0 : (count - 1) * 1e9 / Math.max(1, decodeNanos);
    FinishReason reason = finishReason == null ? FinishReason.CANCELLED : finishReason;
    return new GenerationResult(prompt, Arrays.copyOf(tokens, count), text.toString(), reason,
        Duration.ofNanos(firstNanos), tokensPerSecond);
  }

  @Override
  public void close() {
    release.run();
  }
}

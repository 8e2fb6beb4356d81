package org.mamba4j.bench.peers;

import de.kherud.llama.InferenceParameters;
import de.kherud.llama.LlamaModel;
import de.kherud.llama.LlamaOutput;
import de.kherud.llama.ModelParameters;
import java.nio.file.Path;
import java.util.Iterator;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

/** java-llama.cpp, which takes text. Its warm-up run is left out: it leaves a second pool of threads spinning. */
final class JavaLlama implements Contender {
  private static final int CONTEXT = 4096;
  private static final int BATCH = 512;
  private static final int SHORT_PROMPT = 8;

  private final LlamaModel model;

  JavaLlama(Path gguf, int threads) {
    model =
        new LlamaModel(
            new ModelParameters()
                .setModel(gguf.toString())
                .setThreads(threads)
                .setThreadsBatch(threads)
                .setCtxSize(CONTEXT)
                .setBatchSize(BATCH)
                .setUbatchSize(BATCH)
                .disableLog()
                .skipWarmup());
  }

  @Override
  public double prompt(int tokens) {
    long start = System.nanoTime();
    Iterator<LlamaOutput> outputs = generate(tokens, 1);
    outputs.next();
    double seconds = TokenContender.secondsSince(start);
    outputs.forEachRemaining(output -> {});
    return seconds;
  }

  @Override
  public double decode(int tokens) {
    Iterator<LlamaOutput> outputs = generate(SHORT_PROMPT, tokens + 1);
    outputs.next();
    long start = System.nanoTime();
    outputs.forEachRemaining(output -> {});
    return TokenContender.secondsSince(start);
  }

  @Override
  public int[] greedy(int[] prompt, int tokens) {
    throw new UnsupportedOperationException("java-llama.cpp takes text, not ids");
  }

  @Override
  public void close() {
    model.close();
  }

  /** As many letters as tokens: the benchmark's tokenizer has a token for each byte and merges none of these. */
  static String promptText(int tokens) {
    return IntStream.range(0, tokens).mapToObj(i -> Character.toString(letter(i))).collect(Collectors.joining());
  }

  static int letter(int i) {
    return 'a' + i * 7 % 16;
  }

  private Iterator<LlamaOutput> generate(int promptTokens, int newTokens) {
    return model
        .generate(
            new InferenceParameters(promptText(promptTokens))
                .setNPredict(newTokens)
                .setTemperature(0)
                .setRepeatPenalty(1)
                .setIgnoreEos(true)
                .setCachePrompt(false))
        .iterator();
  }
}

package org.mamba4j.internal;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;
import static org.mamba4j.ffi.mamba4j_h.C_POINTER;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import org.mamba4j.ffi.m4j_advance_args;
import org.mamba4j.ffi.m4j_error;
import org.mamba4j.ffi.mamba4j_h;

/** The native memory of a call of m4j_advance, used again by every call so that a step allocates nothing. */
public final class AdvanceCall {
  private final Arena arena = Arena.ofShared();
  private final MemorySegment args;
  private final MemorySegment error;
  private final MemorySegment slots; // [maxSequences]
  private final MemorySegment offsets; // [maxSequences + 1]
  private final MemorySegment samplings; // [maxSequences] m4j_sampling*
  private final MemorySegment sampled; // [maxSequences]
  private final MemorySegment logProbs; // [maxSequences]
  private Arena tokensArena = Arena.ofShared();
  private MemorySegment tokens; // grows
  private long sequences;
  private long length; // tokens of all sequences

  public AdvanceCall(int maxSequences) {
    try {
      offsets = arena.allocate(JAVA_LONG, maxSequences + 1L);
      slots = arena.allocate(JAVA_LONG, maxSequences);
      samplings = arena.allocate(C_POINTER, maxSequences);
      sampled = arena.allocate(JAVA_INT, maxSequences);
      logProbs = arena.allocate(JAVA_FLOAT, maxSequences);
      args = m4j_advance_args.allocate(arena);
      error = m4j_error.allocate(arena);
      tokens = tokensArena.allocate(JAVA_INT, 32);
    } catch (RuntimeException | Error e) {
      close();
      throw e;
    }
    m4j_advance_args.struct_size(args, m4j_advance_args.sizeof());
    m4j_advance_args.slots(args, slots);
    m4j_advance_args.offsets(args, offsets);
    m4j_advance_args.sampled(args, sampled);
    m4j_advance_args.log_probs(args, logProbs);
  }

  /** Memory that lives as long as this. */
  public Arena arena() {
    return arena;
  }

  /** The m4j_error for calls made in the same turn. */
  public MemorySegment error() {
    return error;
  }

  /** Forgets all sequences. */
  public void clear() {
    sequences = 0;
    length = 0;
  }

  /** Adds a sequence of one token. */
  public void add(long slot, int token) {
    reserve(1);
    tokens.setAtIndex(JAVA_INT, length, token);
    endSequence(slot, 1);
  }

  /** Adds a sequence of {@code count} tokens. */
  public void add(long slot, int[] ids, int from, int count) {
    reserve(count);
    MemorySegment.copy(ids, from, tokens, JAVA_INT, length * JAVA_INT.byteSize(), count);
    endSequence(slot, count);
  }

  /** Tokens of all sequences added. */
  public long length() {
    return length;
  }

  /** Sequences added. */
  public long sequences() {
    return sequences;
  }

  /** First token of sequence {@code i}; of the last sequence + 1 the number of tokens. */
  public long offset(long i) {
    return offsets.getAtIndex(JAVA_LONG, i);
  }

  /** Calls m4j_advance and returns its status. {@code logits} is F32 memory that the caller keeps alive. */
  public int run(MemorySegment states, int logitsMode, MemorySegment logits) {
    describe(logitsMode, logits);
    return mamba4j_h.m4j_advance(states, args, error);
  }

  /**
   * Submits the same to {@code queue} and returns the status of that. Until {@code listener} is called nothing here may
   * be touched or closed.
   */
  public int submit(
      CompletionQueue queue,
      MemorySegment states,
      int logitsMode,
      MemorySegment logits,
      CompletionQueue.Listener listener) {
    describe(logitsMode, logits);
    return queue.advance(states, args, error, listener);
  }

  private void describe(int logitsMode, MemorySegment logits) {
    m4j_advance_args.n_seqs(args, sequences);
    m4j_advance_args.tokens(args, tokens);
    m4j_advance_args.logits_mode(args, logitsMode);
    m4j_advance_args.logits(args, logits);
    m4j_advance_args.logits_capacity(args, logits.byteSize() / Float.BYTES);
    m4j_advance_args.samplings(args, MemorySegment.NULL);
  }

  /** How {@link #next} chooses for sequence {@code i}: an m4j_sampling that the caller keeps alive, or NULL. */
  public void sampling(long i, MemorySegment sampling) {
    samplings.setAtIndex(C_POINTER, i, sampling);
  }

  /** Calls m4j_advance so that it chooses tokens instead of giving logits, and returns its status. */
  public int next(MemorySegment states) {
    describeNext();
    return mamba4j_h.m4j_advance(states, args, error);
  }

  /** Submits the same to {@code queue}, as {@link #submit} does. */
  public int submitNext(CompletionQueue queue, MemorySegment states, CompletionQueue.Listener listener) {
    describeNext();
    return queue.advance(states, args, error, listener);
  }

  private void describeNext() {
    describe(mamba4j_h.M4J_LOGITS_NONE(), MemorySegment.NULL);
    m4j_advance_args.samplings(args, samplings);
  }

  /** The token chosen for sequence {@code i}; below 0: {@code -1 - sampled} is the number of a logit that is not finite. */
  public int sampled(long i) {
    return sampled.getAtIndex(JAVA_INT, i);
  }

  /** Logarithm of the probability of that token, or the logit that is not finite. */
  public float logProb(long i) {
    return logProbs.getAtIndex(JAVA_FLOAT, i);
  }

  /** Frees the memory; no call may be running. */
  public void close() {
    Reclaimer.close(tokensArena);
    Reclaimer.close(arena);
  }

  private void endSequence(long slot, int count) {
    slots.setAtIndex(JAVA_LONG, sequences, slot);
    length += count;
    sequences++;
    offsets.setAtIndex(JAVA_LONG, sequences, length);
  }

  private void reserve(int more) {
    long capacity = tokens.byteSize() / JAVA_INT.byteSize();
    if (length + more <= capacity) {
      return;
    }
    Arena grownArena = Arena.ofShared();
    MemorySegment grown = grownArena.allocate(JAVA_INT, Math.max(length + more, 2 * capacity));
    MemorySegment.copy(tokens, 0, grown, 0, length * JAVA_INT.byteSize());
    Reclaimer.close(tokensArena);
    tokensArena = grownArena;
    tokens = grown;
  }
}

package org.mamba4j.internal;

import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

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
  private Arena tokensArena = Arena.ofShared();
  private MemorySegment tokens; // grows
  private long sequences;
  private long length; // tokens of all sequences

  public AdvanceCall(int maxSequences) {
    offsets = arena.allocate(JAVA_LONG, maxSequences + 1L); // the largest first: if it fails nothing is left behind
    slots = arena.allocate(JAVA_LONG, maxSequences);
    args = m4j_advance_args.allocate(arena);
    error = m4j_error.allocate(arena);
    tokens = tokensArena.allocate(JAVA_INT, 32);
    m4j_advance_args.struct_size(args, m4j_advance_args.sizeof());
    m4j_advance_args.slots(args, slots);
    m4j_advance_args.offsets(args, offsets);
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

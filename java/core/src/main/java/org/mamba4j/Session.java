package org.mamba4j;

import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.ref.Reference;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;
import java.util.function.Supplier;
import org.mamba4j.ffi.mamba4j_h;
import org.mamba4j.internal.AdvanceCall;
import org.mamba4j.internal.CallGate;
import org.mamba4j.internal.CompletionQueue;
import org.mamba4j.internal.OffHeap;
import org.mamba4j.internal.Reclaimer;
import org.mamba4j.internal.Status;

/**
 * One sequence of tokens: owner of its recurrent state, whose size does not depend on the number of tokens. However a
 * sequence is cut into calls, the logits are the same.
 *
 * <p>One thread at a time: a call while another runs throws {@link IllegalStateException}. {@link #close} may come
 * from any thread and waits for a running call. A call that throws leaves the state as it was, except after a {@link
 * MambaException} that says so: then the session wants a {@link #reset} or {@link #restore} first.
 */
public final class Session implements AutoCloseable {
  private final Model model;
  private final Handle handle;
  private final Tensor logits;
  private final int[] single = new int[1];
  private long position;
  private boolean logitsValid;
  private boolean spoiled;

  Session(Model model) {
    this.model = model;
    this.handle = new Handle(model.handle());
    try {
      this.logits = OffHeap.allocate(handle.call.arena(), "logits", DType.F32, model.config().vocabSize());
    } catch (RuntimeException | Error e) {
      handle.close();
      throw e;
    }
    Reclaimer.whenForgotten(this, handle::close);
  }

  /** The model that it runs on. */
  public Model model() {
    return model;
  }

  /** Tokens fed since the beginning or the last {@link #reset}. */
  public long position() {
    return position;
  }

  /** Feeds one token and computes the {@link #logits} after it. Allocates nothing on the Java heap. */
  public void advance(int token) {
    enter();
    try {
      single[0] = token;
      advanceLast(single, 0, 1);
    } finally {
      leave();
    }
  }

  /** Feeds one or more tokens and computes the {@link #logits} after the last one. */
  public void advance(int... tokens) {
    advance(tokens, 0, tokens.length);
  }

  /**
   * Feeds {@code tokens[offset] ... tokens[offset + length - 1]} and computes the {@link #logits} after the last one.
   *
   * @throws IllegalArgumentException if there is no token or one is outside of the vocabulary
   * @throws IllegalStateException if the session or its model is closed, or another call uses the session
   */
  public void advance(int[] tokens, int offset, int length) {
    enter();
    try {
      advanceLast(tokens, offset, length);
    } finally {
      leave();
    }
  }

  /**
   * Feeds one token and returns the one that {@code sampler} chooses after it. Allocates nothing on the Java heap.
   *
   * @throws MambaException if a logit is NaN or infinite: weights or state are damaged
   */
  public int next(Sampler sampler, int token) {
    enter();
    try {
      single[0] = token;
      return nextAfter(sampler, single, 0, 1);
    } finally {
      leave();
    }
  }

  /** Feeds one or more tokens and returns the one that {@code sampler} chooses after the last one. */
  public int next(Sampler sampler, int... tokens) {
    return next(sampler, tokens, 0, tokens.length);
  }

  /**
   * Feeds {@code tokens[offset] ... tokens[offset + length - 1]} and returns the token that {@code sampler} chooses after
   * the last one. It is chosen where the logits are computed; there are no {@link #logits} then.
   *
   * @throws IllegalArgumentException if there is no token or one is outside of the vocabulary
   * @throws IllegalStateException if the session or its model is closed, or another call uses the session
   * @throws MambaException if a logit is NaN or infinite: weights or state are damaged
   */
  public int next(Sampler sampler, int[] tokens, int offset, int length) {
    enter();
    try {
      return nextAfter(sampler, tokens, offset, length);
    } finally {
      leave();
    }
  }

  /**
   * Feeds one or more tokens as {@link #advance(int...)} does, without waiting: the future completes once the session
   * has advanced and has its {@link #logits}, or with the exception that {@code advance} would have thrown while it
   * computed. Wrong arguments and a session in use are thrown from here. Until the future completes every other call on
   * the session throws {@link IllegalStateException} but {@link #position} and {@link #close}, which waits. Calls on one engine compute in
   * the order in which they were submitted; cancelling the future does not stop one. What depends on the future runs in a
   * virtual thread.
   */
  public CompletableFuture<Void> advanceAsync(int... tokens) {
    return submit(null, tokens, () -> null);
  }

  /**
   * Feeds one or more tokens as {@link #advanceAsync} does; the future has the token that {@code sampler} chooses after the
   * last one, as in {@link #next(Sampler, int...)}. Until it completes the sampler is in use too.
   */
  public CompletableFuture<Integer> nextAsync(Sampler sampler, int... tokens) {
    Objects.requireNonNull(sampler, "sampler");
    return submit(sampler, tokens, () -> accept(sampler, handle.call, 0));
  }

  /** Submits a call that chooses a token if there is a sampler; {@code result} reads the future's value off it. */
  private <T> CompletableFuture<T> submit(Sampler sampler, int[] tokens, Supplier<T> result) {
    enter();
    boolean hadLogits = logitsValid;
    boolean samplerTaken = false;
    try {
      checkTokens(tokens, 0, tokens.length);
      feed(tokens, 0, tokens.length);
      CompletableFuture<T> future = new CompletableFuture<>();
      CompletionQueue.Listener listener =
          (status, failure) -> ended(sampler, tokens.length, hadLogits, status, failure, future, result);
      CompletionQueue queue = model.handle().queue;
      logitsValid = false;
      int status;
      if (sampler == null) {
        status = handle.call.submit(queue, states(), mamba4j_h.M4J_LOGITS_LAST(), logits.segment(), listener);
      } else {
        handle.call.sampling(0, sampler.prepare());
        samplerTaken = true;
        status = handle.call.submitNext(queue, states(), listener);
      }
      Status.check(status, error()); // a call that was refused has not touched the state
      return future;
    } catch (RuntimeException | Error e) {
      if (samplerTaken) {
        sampler.release();
      }
      logitsValid = hadLogits;
      leave();
      throw e;
    }
  }

  /** The end of an asynchronous call. */
  private <T> void ended(
      Sampler sampler,
      int tokens,
      boolean hadLogits,
      int status,
      RuntimeException failure,
      CompletableFuture<T> future,
      Supplier<T> result) {
    T value = null;
    Throwable thrown = failure;
    try {
      if (failure == null) {
        position += tokens;
        logitsValid = sampler == null;
        value = result.get();
      } else {
        logitsValid = hadLogits;
        spoiled |= Status.spoilsState(status);
      }
    } catch (RuntimeException | Error e) {
      thrown = e;
    }
    if (sampler != null) {
      sampler.release();
    }
    leave();
    CompletionQueue.complete(future, value, thrown);
  }

  /**
   * Feeds one or more tokens and returns the logits after each: [tokens, vocabulary], in memory of its own that lives
   * as long as it is reachable. {@link #logits} are then those after the last one.
   */
  public Tensor advanceAll(int... tokens) {
    enter();
    try {
      checkTokens(tokens, 0, tokens.length);
      long vocabulary = model.config().vocabSize();
      Tensor all = OffHeap.allocate(Arena.ofAuto(), "logits", DType.F32, tokens.length, vocabulary);
      run(tokens, 0, tokens.length, mamba4j_h.M4J_LOGITS_ALL(), all.segment());
      logits.copyFrom(all.select(0, tokens.length - 1L));
      Reference.reachabilityFence(all);
      return all;
    } finally {
      leave();
    }
  }

  /**
   * Logits after the last token fed, F32 [vocabulary], padding included. The same view every time: the next call that
   * feeds tokens overwrites it, and it ends when the session is closed or becomes unreachable.
   *
   * @throws IllegalStateException if no token was fed since the beginning, a {@link #reset} or a {@link #restore}, or
   *     the last ones in a {@link Batch}, which then has the logits, or with a {@link Sampler}
   */
  public Tensor logits() {
    handle.gate.checkOpen();
    if (!logitsValid) {
      throw new IllegalStateException("the session has no logits: advance it, by itself and not in a batch, without a sampler");
    }
    return logits;
  }

  /** Back to the beginning: a state of zeros at position 0. */
  public void reset() {
    enter();
    try {
      resetState();
    } finally {
      leave();
    }
  }

  /** A new session of the same model with a copy of this one's state, position and logits. */
  public Session fork() {
    enter();
    try {
      checkUsable();
      Session copy = new Session(model);
      try {
        check(mamba4j_h.m4j_slot_copy(states(), copy.handle.slot, handle.slot, error()));
        copy.position = position;
        copy.logitsValid = logitsValid;
        copy.logits.copyFrom(logits);
        return copy;
      } catch (RuntimeException | Error e) {
        copy.close();
        throw e;
      }
    } finally {
      leave();
    }
  }

  /** A copy of state and position, which can be stored as bytes and given to any session of the same model. */
  public StateSnapshot snapshot() {
    enter();
    try {
      checkUsable();
      long size = mamba4j_h.m4j_slot_export_size(model.handle().model);
      Tensor bytes = OffHeap.allocate(Arena.ofAuto(), "snapshot", DType.U8, size);
      check(mamba4j_h.m4j_slot_export(states(), handle.slot, bytes.segment(), size, error()));
      return new StateSnapshot(bytes.segment());
    } finally {
      leave();
    }
  }

  /**
   * Takes over state and position of a snapshot. There are no {@link #logits} until the next token.
   *
   * @throws IllegalArgumentException if the snapshot is of another model or damaged; the state is then as before
   */
  public void restore(StateSnapshot snapshot) {
    enter();
    try {
      MemorySegment bytes = snapshot.segment();
      check(mamba4j_h.m4j_slot_import(states(), handle.slot, bytes, bytes.byteSize(), error()));
      spoiled = false;
      position = snapshot.position();
      logitsValid = false;
    } finally {
      leave();
    }
  }

  /** A copy of the conv windows, F32 [layers, channels, d_conv - 1], oldest input first; GC-managed memory. */
  public Tensor convState() {
    return readState("conv state", model.config().convStateShape(), true);
  }

  /**
   * A copy of the SSM states, F32 [layers, d_inner, d_state] in Mamba-1, [layers, heads, headdim, d_state] in
   * Mamba-2; GC-managed memory.
   */
  public Tensor ssmState() {
    return readState("SSM state", model.config().ssmStateShape(), false);
  }

  /**
   * Gives the state back after waiting for a running call. May be called from any thread, any number of times. On a GPU
   * its memory serves the model's next sessions, and is free again when the model is closed.
   */
  @Override
  public void close() {
    handle.close();
  }

  /** Takes the session for one call; nothing else may use it until {@link #releaseAfterBatch}. */
  void acquireForBatch() {
    handle.gate.enterAlone();
    if (spoiled) {
      handle.gate.leave();
      checkUsable();
    }
  }

  /** The m4j_slot, for a call between {@link #acquireForBatch} and {@link #releaseAfterBatch}. */
  long slot() {
    return handle.slot;
  }

  /** Takes note of what a batch did to the state. */
  void advancedInBatch(int status, long tokens) {
    if (status == mamba4j_h.M4J_OK()) {
      position += tokens;
      logitsValid = false;
    } else {
      spoiled |= Status.spoilsState(status);
    }
  }

  void releaseAfterBatch() {
    handle.gate.leave();
  }

  private void advanceLast(int[] tokens, int offset, int length) {
    checkTokens(tokens, offset, length);
    run(tokens, offset, length, mamba4j_h.M4J_LOGITS_LAST(), logits.segment());
  }

  private int nextAfter(Sampler sampler, int[] tokens, int offset, int length) {
    checkTokens(tokens, offset, length);
    feed(tokens, offset, length);
    handle.call.sampling(0, sampler.prepare());
    try {
      check(handle.call.next(states()));
      position += length;
      logitsValid = false;
      return accept(sampler, handle.call, 0);
    } finally {
      sampler.release();
    }
  }

  /** Lets the sampler know what was chosen for sequence {@code i} of a call. */
  static int accept(Sampler sampler, AdvanceCall call, int i) {
    int token = call.sampled(i);
    if (token < 0) {
      throw new MambaException(
          "sequence %d of the call: logits[%d] is %s, expected finite numbers: the weights or the state are damaged; reset"
                  .formatted(i, -1 - token, call.logProb(i))
              + " or restore the session");
    }
    sampler.chosen(token, call.logProb(i));
    return token;
  }

  private void feed(int[] tokens, int offset, int length) {
    checkUsable();
    handle.call.clear();
    handle.call.add(handle.slot, tokens, offset, length);
  }

  private void run(int[] tokens, int offset, int length, int logitsMode, MemorySegment target) {
    feed(tokens, offset, length);
    check(handle.call.run(states(), logitsMode, target));
    position += length;
    logitsValid = true;
  }

  private void resetState() {
    check(mamba4j_h.m4j_slot_reset(states(), handle.slot, error()));
    position = 0;
    logitsValid = false;
    spoiled = false;
  }

  private Tensor readState(String what, long[] shape, boolean conv) {
    enter();
    try {
      checkUsable();
      Tensor tensor = OffHeap.allocate(Arena.ofAuto(), what, DType.F32, shape);
      MemorySegment absent = MemorySegment.NULL;
      MemorySegment memory = tensor.segment();
      check(
          mamba4j_h.m4j_slot_read(
              states(),
              handle.slot,
              conv ? memory : absent,
              conv ? tensor.size() : 0,
              conv ? absent : memory,
              conv ? 0 : tensor.size(),
              error()));
      return tensor;
    } finally {
      leave();
    }
  }

  private void checkTokens(int[] tokens, int offset, int length) {
    Objects.checkFromIndexSize(offset, length, tokens.length);
    if (length == 0) {
      throw new IllegalArgumentException("tokens: at least one expected, found none");
    }
    model.checkTokens(tokens, offset, length);
  }

  private void checkUsable() {
    if (spoiled) {
      throw new IllegalStateException("the state is undefined after an internal failure; reset or restore the session");
    }
  }

  private void check(int status) {
    spoiled |= Status.spoilsState(status);
    Status.check(status, error());
  }

  private void enter() {
    handle.gate.enterAlone();
    if (!model.handle().gate.tryEnter()) {
      handle.gate.leave();
      model.handle().gate.checkOpen();
    }
  }

  private void leave() {
    model.handle().gate.leave();
    handle.gate.leave();
  }

  private MemorySegment states() {
    return model.handle().states;
  }

  private MemorySegment error() {
    return handle.call.error();
  }

  /** The native slot and memory; does not refer to the session, so that a forgotten one can be released. */
  private static final class Handle {
    final CallGate gate = new CallGate("the session");
    final Model.Handle model;
    final AdvanceCall call = new AdvanceCall(1);
    final long slot;

    Handle(Model.Handle model) {
      this.model = model;
      try {
        model.gate.enter();
        try (Arena arena = Arena.ofConfined()) {
          MemorySegment out = arena.allocate(JAVA_LONG);
          Status.check(mamba4j_h.m4j_slot_take(model.states, out, call.error()), call.error());
          slot = out.get(JAVA_LONG, 0);
        } finally {
          model.gate.leave();
        }
      } catch (RuntimeException | Error e) {
        call.close();
        throw e;
      }
    }

    void close() {
      gate.close(this::release);
    }

    private void release() {
      if (model.gate.tryEnter()) { // a closed model has released its slots
        try {
          mamba4j_h.m4j_slot_release(model.states, slot, MemorySegment.NULL);
        } finally {
          model.gate.leave();
        }
      }
      call.close();
    }
  }
}

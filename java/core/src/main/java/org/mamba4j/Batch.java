package org.mamba4j;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.ref.Reference;
import java.util.Arrays;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;
import org.mamba4j.ffi.mamba4j_h;
import org.mamba4j.internal.AdvanceCall;
import org.mamba4j.internal.CallGate;
import org.mamba4j.internal.CompletionQueue;
import org.mamba4j.internal.OffHeap;
import org.mamba4j.internal.Reclaimer;
import org.mamba4j.internal.Status;

/**
 * Feeds several sessions of one model at once, each its own number of tokens, without padding: the weights are read
 * once for all. The logits are those that each session would have computed alone.
 *
 * <p>Use: {@link #add} sessions, {@link #advance}, read {@link #logits(int)}, {@link #clear}, and again; or add them with
 * samplers, {@link #next}, and read {@link #token(int)}. A batch only
 * refers to its sessions; it is as single-threaded as they are, and they may be used alone in between. Either all
 * sessions advance or, if something is thrown, none does. {@link #close} may come from any thread and waits for a
 * running call.
 */
public final class Batch implements AutoCloseable {
  private static final int MAX_SEQUENCES = 1 << 20;

  private final Model model;
  private final Handle handle;
  private final Session[] sessions;
  private final Sampler[] samplers; // null: nothing is chosen for the session
  private final int[] single = new int[1];
  private final Tensor[] lastLogits; // [vocabulary] each, views of one block
  private Tensor block; // [sessions, vocabulary], null until needed
  private Tensor allLogits; // [tokens, vocabulary] after advanceAll, else null
  private int size;
  private boolean advanced;
  private boolean chosen; // by next, so that there are no logits

  Batch(Model model, int maxSequences) {
    if (maxSequences < 1 || maxSequences > MAX_SEQUENCES) {
      throw new IllegalArgumentException(
          "maxSequences: 1 to %d expected, found %d".formatted(MAX_SEQUENCES, maxSequences));
    }
    model.handle().gate.checkOpen();
    this.model = model;
    this.sessions = new Session[maxSequences];
    this.samplers = new Sampler[maxSequences];
    this.lastLogits = new Tensor[maxSequences];
    this.handle = new Handle(maxSequences);
    Reclaimer.whenForgotten(this, handle::close);
  }

  /** The model of all sessions. */
  public Model model() {
    return model;
  }

  /** Sessions added since the last {@link #clear}. */
  public int size() {
    return size;
  }

  /** Adds a session with the one token to feed it. Allocates nothing on the Java heap. */
  public void add(Session session, int token) {
    handle.gate.enterAlone();
    try {
      single[0] = token;
      addSequence(session, null, single);
    } finally {
      handle.gate.leave();
    }
  }

  /**
   * Adds a session with the tokens to feed it, at least one. The session's index is {@link #size()} before the call.
   *
   * @throws IllegalArgumentException if the session is of another model or in the batch already, or a token is
   *     outside of the vocabulary
   * @throws IllegalStateException if the batch is full, or has advanced and was not cleared
   */
  public void add(Session session, int... tokens) {
    handle.gate.enterAlone();
    try {
      addSequence(session, null, tokens);
    } finally {
      handle.gate.leave();
    }
  }

  /** Adds a session with the one token to feed it and what chooses its next one. Allocates nothing on the Java heap. */
  public void add(Session session, Sampler sampler, int token) {
    handle.gate.enterAlone();
    try {
      single[0] = token;
      addSequence(session, Objects.requireNonNull(sampler, "sampler"), single);
    } finally {
      handle.gate.leave();
    }
  }

  /**
   * As {@link #add(Session, int...)}, with what chooses the session's next token in {@link #next}.
   *
   * @throws IllegalArgumentException also if the sampler is in the batch already
   */
  public void add(Session session, Sampler sampler, int... tokens) {
    handle.gate.enterAlone();
    try {
      addSequence(session, Objects.requireNonNull(sampler, "sampler"), tokens);
    } finally {
      handle.gate.leave();
    }
  }

  /** Feeds all sessions and computes the logits after the last token of each. */
  public void advance() {
    handle.gate.enterAlone();
    try {
      checkReady();
      ensureBlock();
      run(mamba4j_h.M4J_LOGITS_LAST(), block.segment(), false);
      allLogits = null;
    } finally {
      handle.gate.leave();
    }
  }

  /**
   * Feeds all sessions as {@link #advance} does, without waiting: the future completes once all have advanced and the
   * batch has their {@link #logits(int)}, or with the exception that {@code advance} would have thrown while it
   * computed. Until then the batch and its sessions are in use, as in {@link Session#advanceAsync}.
   */
  public CompletableFuture<Void> advanceAsync() {
    handle.gate.enterAlone();
    boolean submitted = false;
    try {
      checkReady();
      ensureBlock();
      acquireSessions();
      try {
        CompletableFuture<Void> future = new CompletableFuture<>();
        CompletionQueue.Listener listener = (status, failure) -> ended(status, failure, future);
        int mode = mamba4j_h.M4J_LOGITS_LAST();
        Model.Handle owner = model.handle();
        Status.check(
            handle.call.submit(owner.queue, owner.states, mode, block.segment(), listener), handle.call.error());
        submitted = true;
        return future;
      } finally {
        if (!submitted) {
          releaseSessions(size);
        }
      }
    } finally {
      if (!submitted) {
        handle.gate.leave();
      }
    }
  }

  /** The end of an asynchronous call. */
  private void ended(int status, RuntimeException failure, CompletableFuture<Void> future) {
    try {
      noteAdvance(status);
      allLogits = null;
    } finally {
      releaseSessions(size);
      handle.gate.leave();
      CompletionQueue.complete(future, null, failure);
    }
  }

  /** Feeds all sessions and computes the logits after every token, in memory of its own that is GC-managed. */
  public void advanceAll() {
    handle.gate.enterAlone();
    try {
      checkReady();
      Tensor all =
          OffHeap.allocate(
              Arena.ofAuto(), "logits of the batch", DType.F32, handle.call.length(), model.config().vocabSize());
      run(mamba4j_h.M4J_LOGITS_ALL(), all.segment(), false);
      Reference.reachabilityFence(all);
      allLogits = all;
    } finally {
      handle.gate.leave();
    }
  }

  /**
   * Feeds all sessions and chooses the next token of those that were added with a sampler, where the logits are computed;
   * there are no logits then. Allocates nothing on the Java heap.
   *
   * @throws MambaException if a logit of a session is NaN or infinite: weights or state are damaged; all sessions have
   *     advanced then, and the others have their tokens
   */
  public void next() {
    handle.gate.enterAlone();
    try {
      checkReady();
      int prepared = 0;
      try {
        for (; prepared < size; prepared++) {
          Sampler sampler = samplers[prepared];
          handle.call.sampling(prepared, sampler == null ? MemorySegment.NULL : sampler.prepare());
        }
        run(mamba4j_h.M4J_LOGITS_NONE(), MemorySegment.NULL, true);
        chosen = true;
        acceptTokens();
      } finally {
        for (int i = 0; i < prepared; i++) {
          if (samplers[i] != null) {
            samplers[i].release();
          }
        }
      }
    } finally {
      handle.gate.leave();
    }
  }

  /**
   * The token chosen for session {@code i} by {@link #next}.
   *
   * @throws IllegalStateException if there was none, or the session was added without a sampler
   */
  public int token(int i) {
    handle.gate.checkOpen();
    Objects.checkIndex(i, size);
    if (!chosen || samplers[i] == null) {
      throw new IllegalStateException("no token was chosen for session " + i + ": add it with a sampler and call next");
    }
    int token = handle.call.sampled(i);
    if (token < 0) {
      throw new IllegalStateException("no token was chosen for session " + i + ": its logits are damaged");
    }
    return token;
  }

  /**
   * Logits of session {@code i}, F32: after {@link #advance} [vocabulary], a view that the next {@code advance}
   * overwrites and that ends when the batch is closed or becomes unreachable; after {@link #advanceAll} [tokens of
   * session i, vocabulary].
   */
  public Tensor logits(int i) {
    handle.gate.checkOpen();
    Objects.checkIndex(i, size);
    if (!advanced || chosen) {
      throw new IllegalStateException(
          advanced ? "the batch has chosen tokens and no logits" : "the batch has not advanced yet");
    }
    return allLogits == null
        ? lastLogits[i]
        : allLogits.slice(0, handle.call.offset(i), handle.call.offset(i + 1));
  }

  /** Removes all sessions. */
  public void clear() {
    handle.gate.enterAlone();
    try {
      Arrays.fill(sessions, 0, size, null);
      Arrays.fill(samplers, 0, size, null);
      size = 0;
      advanced = false;
      chosen = false;
      allLogits = null;
      handle.call.clear();
    } finally {
      handle.gate.leave();
    }
  }

  /** Gives its memory back after waiting for a running call; the sessions stay open. */
  @Override
  public void close() {
    handle.close();
  }

  private void addSequence(Session session, Sampler sampler, int[] tokens) {
    checkNotAdvanced();
    if (size == sessions.length) {
      throw new IllegalStateException("the batch holds " + size + " sessions already, as many as it was made for");
    }
    if (session.model() != model) {
      throw new IllegalArgumentException("session: one of " + model + " expected, found one of " + session.model());
    }
    for (int i = 0; i < size; i++) {
      if (sessions[i] == session) {
        throw new IllegalArgumentException("session: is in the batch already, as number " + i);
      }
      if (sampler != null && samplers[i] == sampler) {
        throw new IllegalArgumentException("sampler: is in the batch already, that of session " + i);
      }
    }
    if (tokens.length == 0) {
      throw new IllegalArgumentException("tokens: at least one expected, found none");
    }
    model.checkTokens(tokens, 0, tokens.length);
    handle.call.add(session.slot(), tokens, 0, tokens.length);
    samplers[size] = sampler;
    sessions[size++] = session;
  }

  private void acceptTokens() {
    MambaException damaged = null;
    for (int i = 0; i < size; i++) {
      if (samplers[i] != null) {
        try {
          Session.accept(samplers[i], handle.call, i);
        } catch (MambaException e) {
          damaged = damaged == null ? e : damaged;
        }
      }
    }
    if (damaged != null) {
      throw damaged;
    }
  }

  private void run(int logitsMode, MemorySegment logits, boolean next) {
    acquireSessions();
    try {
      MemorySegment states = model.handle().states;
      int status = next ? handle.call.next(states) : handle.call.run(states, logitsMode, logits);
      noteAdvance(status);
      Status.check(status, handle.call.error());
    } finally {
      releaseSessions(size);
    }
  }

  /** Takes the model and all sessions for one call, or throws and has taken none. */
  private void acquireSessions() {
    model.handle().gate.enter();
    int acquired = 0;
    try {
      for (; acquired < size; acquired++) {
        sessions[acquired].acquireForBatch();
      }
    } finally {
      if (acquired < size) {
        releaseSessions(acquired);
      }
    }
  }

  private void releaseSessions(int acquired) {
    for (int i = 0; i < acquired; i++) {
      sessions[i].releaseAfterBatch();
    }
    model.handle().gate.leave();
  }

  private void noteAdvance(int status) {
    for (int i = 0; i < size; i++) {
      sessions[i].advancedInBatch(status, handle.call.offset(i + 1) - handle.call.offset(i));
    }
    advanced = status == mamba4j_h.M4J_OK();
  }

  private void ensureBlock() {
    if (block == null) {
      block = OffHeap.allocate(
          handle.call.arena(), "logits of the batch", DType.F32, sessions.length, model.config().vocabSize());
      for (int i = 0; i < sessions.length; i++) {
        lastLogits[i] = block.select(0, i);
      }
    }
  }

  private void checkReady() {
    checkNotAdvanced();
    if (size == 0) {
      throw new IllegalStateException("the batch is empty; add sessions first");
    }
  }

  private void checkNotAdvanced() {
    if (advanced) {
      throw new IllegalStateException("the batch has advanced; clear it before its next use");
    }
  }

  /** The native memory; does not refer to the batch, so that a forgotten one can be released. */
  private static final class Handle {
    final CallGate gate = new CallGate("the batch");
    final AdvanceCall call;

    Handle(int maxSequences) {
      call = new AdvanceCall(maxSequences);
    }

    void close() {
      gate.close(call::close);
    }
  }
}

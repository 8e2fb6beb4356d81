package org.mamba4j;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import org.mamba4j.checkpoint.Checkpoint;
import org.mamba4j.ffi.mamba4j_h;
import org.mamba4j.hub.Hub;
import org.mamba4j.internal.CallGate;
import org.mamba4j.internal.CompletionQueue;
import org.mamba4j.internal.Reclaimer;

/**
 * A language model: immutable weights on an {@link Engine}. Any number of threads may use one model at once; each
 * sequence of tokens has a {@link Session} of its own.
 *
 * <p>Closing waits for running calls, the sessions' included, then releases the weights. Afterwards the model and all
 * its sessions and batches throw {@link IllegalStateException}; closing them is still allowed. A model that is never
 * closed is released some time after it and its sessions have become unreachable.
 */
public final class Model implements AutoCloseable {
  private final Path folder;
  private final ModelConfig config;
  private final Engine engine;
  private final long parameterCount;
  private final long weightBytes;
  private final long stateBytes;
  private final long fingerprint;
  private final Handle handle;

  Model(Path folder, ModelConfig config, Engine engine, long parameterCount, long weightBytes, Handle handle) {
    this.folder = folder;
    this.config = config;
    this.engine = engine;
    this.parameterCount = parameterCount;
    this.weightBytes = weightBytes;
    this.stateBytes = mamba4j_h.m4j_model_state_bytes(handle.model);
    this.fingerprint = mamba4j_h.m4j_model_fingerprint(handle.model);
    this.handle = handle;
    Reclaimer.whenForgotten(this, handle::close);
  }

  /** Loads the checkpoint in {@code folder} with {@link ModelOptions#defaults()}. */
  public static Model load(Path folder) throws IOException {
    return load(folder, ModelOptions.defaults());
  }

  /**
   * Loads the checkpoint in {@code folder}: Hugging Face layout or that of state-spaces, or a GGUF file, given by its
   * own path or as the only one in a folder.
   *
   * @throws org.mamba4j.checkpoint.CheckpointException if a file is damaged, contradicts another or is not supported;
   *     the message names file, tensor, expected and found
   * @throws IOException if a file cannot be read
   * @throws MambaException if there is not enough memory
   */
  public static Model load(Path folder, ModelOptions options) throws IOException {
    return ModelLoader.load(folder, options);
  }

  /** Loads a folder or, from the hub, a repository, with {@link ModelOptions#defaults()}. */
  public static Model load(String idOrPath) throws IOException {
    return load(idOrPath, ModelOptions.defaults());
  }

  /**
   * Loads the folder or GGUF file {@code idOrPath} if there is one; else downloads the hub's repository of that name
   * ({@code "state-spaces/mamba-130m-hf"}) into the cache, where it is found the next time.
   */
  public static Model load(String idOrPath, ModelOptions options) throws IOException {
    Path folder = existing(idOrPath);
    if (folder == null) {
      Hub hub = Hub.fromEnvironment();
      try {
        folder = hub.download(idOrPath, "main", options.progress());
      } catch (IllegalArgumentException e) {
        throw new IllegalArgumentException("there is no folder '" + idOrPath + "', and it is " + e.getMessage(), e);
      }
    }
    return load(folder, options);
  }

  /** Dimensions and constants. */
  public ModelConfig config() {
    return config;
  }

  /** The engine it computes on. */
  public Engine engine() {
    return engine;
  }

  /** The folder, or the GGUF file, that it was loaded from. */
  public Path folder() {
    return folder;
  }

  /** A new sequence: a state of zeros at position 0. */
  public Session newSession() {
    return new Session(this);
  }

  /** A batch for up to {@code maxSequences} sessions of this model, 1 to 2^20. */
  public Batch newBatch(int maxSequences) {
    return new Batch(this, maxSequences);
  }

  /** Number of weights; a head tied to the embedding counts once. */
  public long parameterCount() {
    return parameterCount;
  }

  /** Bytes of weights in the element types in use, see {@link WeightType}. */
  public long weightBytes() {
    return weightBytes;
  }

  /** Bytes of conv window and SSM state a sequence; they do not grow with its length. */
  public long stateBytes() {
    return stateBytes;
  }

  /** Identifies dimensions and weights: what {@link StateSnapshot#modelFingerprint()} is compared with. */
  public long fingerprint() {
    return fingerprint;
  }

  /** Releases the model after waiting for running calls. May be called from any thread, any number of times. */
  @Override
  public void close() {
    handle.close();
  }

  @Override
  public String toString() {
    return "Model[" + folder + ", " + config.family() + ", " + parameterCount + " parameters]";
  }

  Handle handle() {
    return handle;
  }

  /** Throws unless all tokens are in the vocabulary. */
  void checkTokens(int[] tokens, int offset, int length) {
    long vocabulary = config.vocabSize();
    for (int i = offset; i < offset + length; i++) {
      if (tokens[i] < 0 || tokens[i] >= vocabulary) {
        throw new IllegalArgumentException(
            "tokens[%d]: an id of 0 to %d expected (vocabulary of %d), found %d"
                .formatted(i, vocabulary - 1, vocabulary, tokens[i]));
      }
    }
  }

  private static Path existing(String idOrPath) {
    try {
      Path path = Path.of(idOrPath);
      return !idOrPath.isEmpty() && Files.exists(path) ? path : null;
    } catch (InvalidPathException e) {
      return null;
    }
  }

  /** The native model with the pool of its sessions' states, and what has to live as long. */
  static final class Handle {
    final CallGate gate = new CallGate("the model");
    final MemorySegment model;
    final MemorySegment states;
    final CompletionQueue queue;
    private final Engine ownEngine; // null: shared
    private final Checkpoint mapped; // null: nothing is mapped any more
    private final Arena copies;

    Handle(
        MemorySegment model,
        MemorySegment states,
        CompletionQueue queue,
        Engine ownEngine,
        Checkpoint mapped,
        Arena copies) {
      this.model = model;
      this.states = states;
      this.queue = queue;
      this.ownEngine = ownEngine;
      this.mapped = mapped;
      this.copies = copies;
    }

    void close() {
      gate.close(this::release);
    }

    private void release() {
      mamba4j_h.m4j_states_release(states);
      mamba4j_h.m4j_model_release(model);
      queue.release();
      ModelLoader.release(ownEngine, mapped, copies); // only now is the weights' memory unused
    }
  }
}

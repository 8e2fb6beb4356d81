package org.mamba4j;

import static org.mamba4j.ffi.mamba4j_h.C_POINTER;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import org.mamba4j.ModelOptions.Weights;
import org.mamba4j.checkpoint.Checkpoint;
import org.mamba4j.checkpoint.LayerWeights;
import org.mamba4j.ffi.m4j_error;
import org.mamba4j.ffi.m4j_layer_weights;
import org.mamba4j.ffi.m4j_model_config;
import org.mamba4j.ffi.m4j_model_weights;
import org.mamba4j.ffi.mamba4j_h;
import org.mamba4j.internal.CompletionQueue;
import org.mamba4j.internal.FloatConversion;
import org.mamba4j.internal.OffHeap;
import org.mamba4j.internal.Reclaimer;
import org.mamba4j.internal.Status;
import org.mamba4j.internal.TensorStruct;

/** Hands the tensors of a checkpoint to the native library. */
final class ModelLoader {
  /**
   * Models up to this size live in the caches, where a vector that crosses a cache line costs as much as two: their
   * weights are copied to places of their own. Files have theirs wherever the header ends.
   */
  private static final long SMALL_BYTES = 4 << 20;

  private final Checkpoint checkpoint;
  private final ModelOptions options;
  private final Engine engine;
  private final Arena copies;
  private final Map<Tensor, DType> converted = new IdentityHashMap<>(); // tensors that change their type
  private final boolean copied; // whether nothing stays in the mapped files
  private final long totalBytes;
  private long doneBytes;
  private long weightBytes;

  private ModelLoader(Checkpoint checkpoint, ModelOptions options, Engine engine, Arena copies) {
    this.checkpoint = checkpoint;
    this.options = options;
    this.engine = engine;
    this.copies = copies;
    checkpoint
        .hfTensors()
        .forEach(
            (name, tensor) -> {
              DType type = options.weightType().of(name, tensor);
              if (type != tensor.dtype()) {
                converted.put(tensor, type);
              }
            });
    this.totalBytes = checkpoint.hfTensors().values().stream().mapToLong(ModelLoader::bytes).sum();
    this.copied = options.weights() == Weights.COPIED || !converted.isEmpty() || totalBytes <= SMALL_BYTES;
  }

  static Model load(Path folder, ModelOptions options) throws IOException {
    Checkpoint checkpoint = null;
    Engine ownEngine = null;
    Arena copies = Arena.ofShared();
    try {
      checkpoint = Checkpoint.open(folder);
      ownEngine = options.engine() == null ? Engine.create(options.engineOptions()) : null;
      Engine engine = ownEngine == null ? options.engine() : ownEngine;
      return new ModelLoader(checkpoint, options, engine, copies).create(folder, ownEngine);
    } catch (Throwable e) {
      release(ownEngine, checkpoint, copies);
      throw e;
    }
  }

  /** Gives back what a model needed besides its native handles; null for what there is not. */
  static void release(Engine ownEngine, Checkpoint mapped, Arena copies) {
    if (ownEngine != null) {
      ownEngine.close();
    }
    if (mapped != null) {
      mapped.close();
    }
    Reclaimer.close(copies);
  }

  private Model create(Path folder, Engine ownEngine) {
    ModelConfig config = checkpoint.config();
    MemorySegment model;
    MemorySegment states;
    CompletionQueue queue;
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(C_POINTER);
      MemorySegment error = m4j_error.allocate(arena);
      MemorySegment configStruct = describe(config, arena);
      MemorySegment weights = describeWeights(arena);
      engine.enter();
      try {
        Status.check(mamba4j_h.m4j_model_create(engine.pointer(), configStruct, weights, out, error), error);
        queue = engine.queue().retain();
      } finally {
        engine.leave();
      }
      model = out.get(C_POINTER, 0);
      int status = mamba4j_h.m4j_states_create(model, 0, out, error);
      if (status != mamba4j_h.M4J_OK()) {
        mamba4j_h.m4j_model_release(model);
        queue.release();
        Status.check(status, error);
      }
      states = out.get(C_POINTER, 0);
    }
    long parameters = checkpoint.hfTensors().values().stream().mapToLong(Tensor::size).sum();
    boolean uploaded = engine.device().isCuda(); // the GPU has its own copy
    Checkpoint mapped = copied || uploaded ? null : checkpoint;
    if (mapped == null) {
      checkpoint.close();
    }
    if (uploaded) {
      Reclaimer.close(copies);
    }
    var handle = new Model.Handle(model, states, queue, ownEngine, mapped, copies);
    return new Model(folder, config, engine, parameters, weightBytes, handle);
  }

  private MemorySegment describe(ModelConfig config, Arena arena) {
    MemorySegment struct = m4j_model_config.allocate(arena);
    m4j_model_config.struct_size(struct, m4j_model_config.sizeof());
    m4j_model_config.family(
        struct,
        switch (config.family()) {
          case MAMBA1 -> mamba4j_h.M4J_MAMBA1();
          case FALCON_MAMBA -> mamba4j_h.M4J_FALCON_MAMBA();
          case MAMBA2 -> mamba4j_h.M4J_MAMBA2();
        });
    m4j_model_config.state_type(
        struct,
        switch (options.stateType()) {
          case F32 -> mamba4j_h.M4J_F32();
          case BF16 -> mamba4j_h.M4J_BF16();
        });
    m4j_model_config.activation_type(
        struct,
        switch (options.activationType()) {
          case F32 -> mamba4j_h.M4J_F32();
          case BF16 -> mamba4j_h.M4J_BF16();
        });
    m4j_model_config.n_layer(struct, config.layers());
    m4j_model_config.vocab_size(struct, config.vocabSize());
    m4j_model_config.d_model(struct, config.dModel());
    m4j_model_config.d_inner(struct, config.dInner());
    m4j_model_config.d_state(struct, config.dState());
    m4j_model_config.d_conv(struct, config.dConv());
    m4j_model_config.dt_rank(struct, config.dtRank());
    m4j_model_config.n_heads(struct, config.nHeads());
    m4j_model_config.headdim(struct, config.headDim());
    m4j_model_config.n_groups(struct, config.nGroups());
    m4j_model_config.chunk_size(struct, config.chunkSize());
    m4j_model_config.norm_eps(struct, config.normEps());
    m4j_model_config.mixer_norm_eps(struct, config.mixerNormEps());
    m4j_model_config.dt_min(struct, config.dtMin());
    m4j_model_config.dt_max(struct, config.dtMax());
    return struct;
  }

  private MemorySegment describeWeights(Arena arena) {
    MemorySegment struct = m4j_model_weights.allocate(arena);
    m4j_model_weights.struct_size(struct, m4j_model_weights.sizeof());
    put(m4j_model_weights.embedding(struct), "embedding", checkpoint.embedding());
    put(m4j_model_weights.norm_f(struct), "norm_f", checkpoint.normF());
    put(m4j_model_weights.lm_head(struct), "lm_head", checkpoint.lmHead());
    List<LayerWeights> layers = checkpoint.layers();
    MemorySegment array = m4j_layer_weights.allocateArray(layers.size(), arena);
    for (int i = 0; i < layers.size(); i++) {
      putLayer(m4j_layer_weights.asSlice(array, i), "layers." + i + ".", layers.get(i));
    }
    m4j_model_weights.layers(struct, array);
    return struct;
  }

  private void putLayer(MemorySegment struct, String prefix, LayerWeights layer) {
    put(m4j_layer_weights.norm(struct), prefix + "norm", layer.norm());
    put(m4j_layer_weights.in_proj(struct), prefix + "in_proj", layer.inProj());
    put(m4j_layer_weights.in_proj_bias(struct), prefix + "in_proj_bias", layer.inProjBias());
    put(m4j_layer_weights.conv_weight(struct), prefix + "conv_weight", layer.convWeight());
    put(m4j_layer_weights.conv_bias(struct), prefix + "conv_bias", layer.convBias());
    put(m4j_layer_weights.x_proj(struct), prefix + "x_proj", layer.xProj());
    put(m4j_layer_weights.dt_proj(struct), prefix + "dt_proj", layer.dtProj());
    put(m4j_layer_weights.dt_bias(struct), prefix + "dt_bias", layer.dtBias());
    put(m4j_layer_weights.a_log(struct), prefix + "a_log", layer.aLog());
    put(m4j_layer_weights.d(struct), prefix + "d", layer.d());
    put(m4j_layer_weights.mixer_norm(struct), prefix + "mixer_norm", layer.mixerNorm());
    put(m4j_layer_weights.out_proj(struct), prefix + "out_proj", layer.outProj());
    put(m4j_layer_weights.out_proj_bias(struct), prefix + "out_proj_bias", layer.outProjBias());
  }

  private void put(MemorySegment struct, String name, Tensor tensor) {
    if (tensor != null) {
      Tensor used = inUse(name, tensor);
      TensorStruct.write(struct, name, used);
      weightBytes += bytes(used);
      doneBytes += bytes(tensor);
      options.progress().progress("weights", doneBytes, totalBytes);
    }
  }

  private Tensor inUse(String name, Tensor stored) {
    DType type = converted.get(stored);
    if (type == null) {
      return copied ? OffHeap.copy(copies, name, stored) : stored;
    }
    Tensor tensor = OffHeap.allocate(copies, name, type, stored.shape());
    if (type.isBlock()) {
      try {
        return Ops.quantize(engine, stored, tensor);
      } catch (IllegalArgumentException e) {
        throw new IllegalArgumentException(name + ": " + e.getMessage(), e);
      }
    }
    FloatConversion.convert(name, stored, tensor);
    return tensor;
  }

  private static long bytes(Tensor tensor) {
    return tensor.dtype().bytesFor(tensor.size());
  }
}

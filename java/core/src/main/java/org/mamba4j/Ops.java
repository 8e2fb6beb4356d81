package org.mamba4j;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static org.mamba4j.ffi.mamba4j_h.C_POINTER;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.function.BiConsumer;
import org.mamba4j.ffi.m4j_causal_conv1d_args;
import org.mamba4j.ffi.m4j_error;
import org.mamba4j.ffi.m4j_linear_args;
import org.mamba4j.ffi.m4j_rms_norm_args;
import org.mamba4j.ffi.m4j_sample_args;
import org.mamba4j.ffi.m4j_selective_scan_args;
import org.mamba4j.ffi.m4j_ssd_args;
import org.mamba4j.ffi.mamba4j_h;
import org.mamba4j.internal.OffHeap;
import org.mamba4j.internal.OpCall;
import org.mamba4j.internal.OpFunction;
import org.mamba4j.internal.Status;

/**
 * The operations that the models are made of, on tensors of the caller, in memory of the engine's device. Each returns
 * its output, once it is there: the one given, or a new tensor in GC-managed memory.
 *
 * <p>On the CPU tensors are F32 unless that is said, strided views are taken as they are, and nothing is copied. On a
 * GPU the activations of a call may be F16 or BF16 instead, all of one type, which a new output has too; weights,
 * states, windows and biases are F32 as on the CPU. Views whose rows a kernel cannot take as they lie are packed on the
 * way, in parts of bounded size. Limits there: 256 states in a selective scan, 8 taps in a convolution.
 *
 * <p>Tensors must be off-heap (a Java array is refused), aligned to their element and, as outputs, writable and not
 * overlapping an input unless that is said. While a call runs no arena of its tensors can be closed: {@code close}
 * throws then. Memory that Java does not manage, made into a segment by {@code MemorySegment.ofAddress}, is the
 * caller's to keep alive, and a mapped file must not be truncated meanwhile.
 *
 * <p>All throw {@link IllegalArgumentException} naming the tensor, the shape expected and that found, and {@link
 * IllegalStateException} if the engine or a tensor's arena is closed. Any thread may call; calls on one engine take
 * turns.
 */
public final class Ops {
  private Ops() {}

  /**
   * Selective scan of Mamba (Gu and Dao 2023, algorithm 2): {@code h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t},
   * {@code out_t = (C_t h_t + D u_t) silu(z_t)}. Returns out [B, E, L].
   */
  public static Tensor selectiveScan(Engine engine, SelectiveScanArgs args) {
    required("u", args.u());
    Tensor out = args.out() == null ? like(engine, args.u()) : args.out();
    return call(
        engine,
        out,
        (arena, call) -> {
          MemorySegment s = m4j_selective_scan_args.allocate(arena);
          m4j_selective_scan_args.struct_size(s, m4j_selective_scan_args.sizeof());
          m4j_selective_scan_args.delta_softplus(s, args.deltaSoftplus() ? 1 : 0);
          call.input(m4j_selective_scan_args.u(s), "u", args.u())
              .input(m4j_selective_scan_args.delta(s), "delta", required("delta", args.delta()))
              .input(m4j_selective_scan_args.A(s), "A", required("A", args.a()))
              .input(m4j_selective_scan_args.B(s), "B", required("B", args.b()))
              .input(m4j_selective_scan_args.C(s), "C", required("C", args.c()))
              .input(m4j_selective_scan_args.D(s), "D", args.d())
              .input(m4j_selective_scan_args.z(s), "z", args.z())
              .input(m4j_selective_scan_args.delta_bias(s), "delta_bias", args.deltaBias())
              .input(m4j_selective_scan_args.initial_state(s), "initial_state", args.initialState())
              .output(m4j_selective_scan_args.out(s), "out", out)
              .output(m4j_selective_scan_args.last_state(s), "last_state", args.lastState())
              .invoke(OpFunction.SELECTIVE_SCAN, engine.pointer(), s);
        });
  }

  /**
   * State space dual form of Mamba-2 in chunks (Dao and Gu 2024, section 6): {@code h_t = exp(dt_t A) h_(t-1) + dt_t
   * x_t B_t^T}, {@code out_t = h_t C_t + D x_t}. Returns out [B, L, H, P].
   */
  public static Tensor ssd(Engine engine, SsdArgs args) {
    required("x", args.x());
    Tensor out = args.out() == null ? like(engine, args.x()) : args.out();
    return call(
        engine,
        out,
        (arena, call) -> {
          MemorySegment s = m4j_ssd_args.allocate(arena);
          m4j_ssd_args.struct_size(s, m4j_ssd_args.sizeof());
          m4j_ssd_args.dt_softplus(s, args.dtSoftplus() ? 1 : 0);
          m4j_ssd_args.chunk_size(s, args.chunkSize());
          m4j_ssd_args.dt_min(s, args.dtMin());
          m4j_ssd_args.dt_max(s, args.dtMax());
          call.input(m4j_ssd_args.x(s), "x", args.x())
              .input(m4j_ssd_args.dt(s), "dt", required("dt", args.dt()))
              .input(m4j_ssd_args.A(s), "A", required("A", args.a()))
              .input(m4j_ssd_args.B(s), "B", required("B", args.b()))
              .input(m4j_ssd_args.C(s), "C", required("C", args.c()))
              .input(m4j_ssd_args.D(s), "D", args.d())
              .input(m4j_ssd_args.dt_bias(s), "dt_bias", args.dtBias())
              .input(m4j_ssd_args.initial_state(s), "initial_state", args.initialState())
              .output(m4j_ssd_args.out(s), "out", out)
              .output(m4j_ssd_args.last_state(s), "last_state", args.lastState())
              .invoke(OpFunction.SSD, engine.pointer(), s);
        });
  }

  /**
   * Causal depthwise convolution over time: {@code out_t = bias + sum_k weight_k x_(t-(K-1)+k)}, then SiLU if wanted.
   * Returns out [B, L, C].
   */
  public static Tensor causalConv1d(Engine engine, CausalConv1dArgs args) {
    required("x", args.x());
    Tensor out = args.out() == null ? like(engine, args.x()) : args.out();
    return call(
        engine,
        out,
        (arena, call) -> {
          MemorySegment s = m4j_causal_conv1d_args.allocate(arena);
          m4j_causal_conv1d_args.struct_size(s, m4j_causal_conv1d_args.sizeof());
          m4j_causal_conv1d_args.silu(s, args.silu() ? 1 : 0);
          call.input(m4j_causal_conv1d_args.x(s), "x", args.x())
              .input(m4j_causal_conv1d_args.weight(s), "weight", required("weight", args.weight()))
              .input(m4j_causal_conv1d_args.bias(s), "bias", args.bias())
              .input(m4j_causal_conv1d_args.initial_window(s), "initial_window", args.initialWindow())
              .output(m4j_causal_conv1d_args.out(s), "out", out)
              .output(m4j_causal_conv1d_args.last_window(s), "last_window", args.lastWindow())
              .invoke(OpFunction.CAUSAL_CONV1D, engine.pointer(), s);
        });
  }

  /** RMSNorm over the last dimension, in groups, gated if a gate is given. Returns out [rows, D]. */
  public static Tensor rmsNorm(Engine engine, RmsNormArgs args) {
    required("x", args.x());
    Tensor out = args.out() == null ? like(engine, args.x()) : args.out();
    return call(
        engine,
        out,
        (arena, call) -> {
          MemorySegment s = m4j_rms_norm_args.allocate(arena);
          m4j_rms_norm_args.struct_size(s, m4j_rms_norm_args.sizeof());
          m4j_rms_norm_args.n_groups(s, args.groups());
          m4j_rms_norm_args.eps(s, args.eps());
          call.input(m4j_rms_norm_args.x(s), "x", args.x())
              .input(m4j_rms_norm_args.gate(s), "gate", args.gate())
              .input(m4j_rms_norm_args.weight(s), "weight", args.weight())
              .output(m4j_rms_norm_args.out(s), "out", out)
              .invoke(OpFunction.RMS_NORM, engine.pointer(), s);
        });
  }

  /**
   * {@code x weight^T + bias}: x [rows, in], weight [out, in] in F32, F16, BF16, Q8_0 or Q4_0, bias [out] or null, the
   * rows of each contiguous. Returns [rows, out].
   */
  public static Tensor linear(Engine engine, Tensor x, Tensor weight, Tensor bias) {
    checkRank("x", x, 2);
    checkRank("weight", weight, 2);
    return linear(engine, x, weight, bias, allocate(engine, activation(engine, x), x.dim(0), weight.dim(0)));
  }

  /** As {@link #linear(Engine, Tensor, Tensor, Tensor)}, into {@code out} [rows, out]. */
  public static Tensor linear(Engine engine, Tensor x, Tensor weight, Tensor bias, Tensor out) {
    return call(
        engine,
        out,
        (arena, call) -> {
          MemorySegment s = m4j_linear_args.allocate(arena);
          m4j_linear_args.struct_size(s, m4j_linear_args.sizeof());
          call.input(m4j_linear_args.x(s), "x", required("x", x))
              .input(m4j_linear_args.weight(s), "weight", required("weight", weight))
              .input(m4j_linear_args.bias(s), "bias", bias)
              .output(m4j_linear_args.out(s), "out", out)
              .invoke(OpFunction.LINEAR, engine.pointer(), s);
        });
  }

  /** Rows of {@code table} [V, D] (F32, F16, BF16, Q8_0 or Q4_0) in the order of {@code ids}: F32 [ids, D]. */
  public static Tensor embedding(Engine engine, Tensor table, int... ids) {
    checkRank("table", table, 2);
    Tensor out = allocate(engine, DType.F32, ids.length, table.dim(1));
    return call(
        engine,
        out,
        (arena, call) -> {
          MemorySegment idSegment = arena.allocateFrom(JAVA_INT, ids);
          MemorySegment tableStruct = call.input("table", table);
          MemorySegment outStruct = call.output("out", out);
          call.invoke(
              OpFunction.EMBEDDING, engine.pointer(), tableStruct, idSegment, (long) ids.length, outStruct);
        });
  }

  /**
   * Quantises {@code weights} [rows, n] (F32, F16 or BF16, contiguous, n a multiple of 32) into {@code out} [rows, n],
   * {@link DType#Q8_0} or {@link DType#Q4_0}: scales for the least squared error of each block. Both are in host
   * memory, whatever the engine's device: its threads prepare what models are made from. Returns out.
   */
  public static Tensor quantize(Engine engine, Tensor weights, Tensor out) {
    return call(
        engine,
        Device.cpu(),
        out,
        (arena, call) -> {
          MemorySegment weightsStruct = call.input("weights", required("weights", weights));
          MemorySegment outStruct = call.output("out", out);
          call.invoke(OpFunction.QUANTIZE, engine.pointer(), weightsStruct, outStruct);
        });
  }

  /** Softmax over the last dimension of {@code x} [rows, n], in a new tensor. */
  public static Tensor softmax(Engine engine, Tensor x) {
    return softmax(engine, x, allocate(engine, DType.F32, required("x", x).shape()));
  }

  /** Softmax over the last dimension of {@code x} [rows, n] into {@code out}, which may be x. */
  public static Tensor softmax(Engine engine, Tensor x, Tensor out) {
    return overRows(engine, x, out, false);
  }

  /** Logarithm of the softmax over the last dimension of {@code x} [rows, n], in a new tensor. */
  public static Tensor logSoftmax(Engine engine, Tensor x) {
    return logSoftmax(engine, x, allocate(engine, DType.F32, required("x", x).shape()));
  }

  /** Logarithm of the softmax over the last dimension of {@code x} [rows, n] into {@code out}, which may be x. */
  public static Tensor logSoftmax(Engine engine, Tensor x, Tensor out) {
    return overRows(engine, x, out, true);
  }

  /**
   * The token that {@code sampler} chooses from {@code logits} [vocabulary], as {@link Session#next} would.
   *
   * @throws IllegalArgumentException also if a logit is NaN or infinite
   */
  public static int sample(Engine engine, Tensor logits, Sampler sampler) {
    checkRank("logits", logits, 1);
    engine.enter();
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment token = arena.allocate(JAVA_INT);
      MemorySegment logProb = arena.allocate(JAVA_FLOAT);
      MemorySegment s = m4j_sample_args.allocate(arena);
      m4j_sample_args.struct_size(s, m4j_sample_args.sizeof());
      m4j_sample_args.tokens(s, token);
      m4j_sample_args.log_probs(s, logProb);
      MemorySegment sampling = sampler.prepare();
      try {
        m4j_sample_args.samplings(s, arena.allocateFrom(C_POINTER, sampling));
        new OpCall(arena, engine.device())
            .input(m4j_sample_args.logits(s), "logits", logits.reshape(1, logits.size()))
            .invoke(OpFunction.SAMPLE, engine.pointer(), s);
        sampler.chosen(token.get(JAVA_INT, 0), logProb.get(JAVA_FLOAT, 0));
      } finally {
        sampler.release();
      }
      return token.get(JAVA_INT, 0);
    } finally {
      engine.leave();
    }
  }

  private static Tensor overRows(Engine engine, Tensor x, Tensor out, boolean log) {
    return call(
        engine,
        out,
        (arena, call) -> {
          MemorySegment xStruct = call.input("x", required("x", x));
          MemorySegment outStruct = call.output("out", out);
          call.invoke(log ? OpFunction.LOG_SOFTMAX : OpFunction.SOFTMAX, engine.pointer(), xStruct, outStruct);
        });
  }

  /**
   * Copies the elements of {@code from} into {@code to}, which has the same shape. Each is in host memory or in that of
   * the engine's device; any strides. One element type is converted to another as {@link Tensor#copyFrom} does in host
   * memory, between F32, F16 and BF16 where a GPU takes part, rounded to nearest, ties to even. Returns to.
   */
  public static Tensor copy(Engine engine, Tensor from, Tensor to) {
    checkPlace("from", required("from", from), engine);
    checkPlace("to", required("to", to), engine);
    if (!Arrays.equals(from.shape(), to.shape())) {
      throw new IllegalArgumentException(
          "to: shape %s expected, found %s".formatted(Arrays.toString(from.shape()), Arrays.toString(to.shape())));
    }
    boolean up = !from.device().isCuda();
    boolean down = !to.device().isCuda();
    if (up && down) {
      to.copyFrom(from);
    } else if (from.dtype() == to.dtype() && isPlain(from) && isPlain(to)) {
      copyBytes(engine, from, to);
    } else if (!up && !down) {
      copyElements(engine, from, to);
    } else {
      copyOverTheBus(engine, from, to, up);
    }
    return to;
  }

  /** Over the bus go plain bytes of the host tensor's type; the GPU does the rest. */
  private static void copyOverTheBus(Engine engine, Tensor from, Tensor to, boolean up) {
    try (Arena arena = Arena.ofConfined()) {
      Tensor between = Tensor.allocate(arena, engine, (up ? from : to).dtype(), from.shape());
      if (up) {
        copyBytes(engine, isPlain(from) ? from : from.copyTo(arena), between);
        copyElements(engine, between, to);
      } else {
        Tensor plain = isPlain(to) ? to : OffHeap.allocate(arena, "to", to.dtype(), to.shape());
        copyElements(engine, from, between);
        copyBytes(engine, between, plain);
        if (plain != to) {
          to.copyFrom(plain);
        }
      }
    }
  }

  private static void copyElements(Engine engine, Tensor from, Tensor to) {
    if (isPlain(from) && isPlain(to) && from.dtype() == to.dtype()) {
      copyBytes(engine, from, to);
      return;
    }
    call(
        engine,
        to,
        (arena, call) -> {
          MemorySegment fromStruct = call.input("from", from);
          MemorySegment toStruct = call.output("to", to);
          call.invoke(OpFunction.COPY, engine.pointer(), fromStruct, toStruct);
        });
  }

  private static void copyBytes(Engine engine, Tensor from, Tensor to) {
    if (to.pointer().isReadOnly()) {
      throw new IllegalArgumentException("to: writable memory expected, found a read-only segment");
    }
    engine.enter();
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment error = m4j_error.allocate(arena);
      long bytes = from.dtype().bytesFor(from.size());
      int direction =
          !from.device().isCuda()
              ? mamba4j_h.M4J_TO_DEVICE()
              : to.device().isCuda() ? mamba4j_h.M4J_ON_DEVICE() : mamba4j_h.M4J_TO_HOST();
      Status.check(
          mamba4j_h.m4j_copy_bytes(engine.pointer(), to.pointer(), from.pointer(), bytes, direction, error), error);
    } finally {
      engine.leave();
    }
  }

  /** Whether its bytes are its elements in order, at an address. */
  private static boolean isPlain(Tensor tensor) {
    return tensor.isContiguous() && tensor.pointer().isNative();
  }

  private static void checkPlace(String name, Tensor tensor, Engine engine) {
    if (tensor.device().isCuda() && !tensor.device().equals(engine.device())) {
      throw new IllegalArgumentException(
          "%s: a tensor on cpu or %s expected, as the engine, found one on %s"
              .formatted(name, engine.device(), tensor.device()));
    }
  }

  private static Tensor call(Engine engine, Tensor out, BiConsumer<Arena, OpCall> body) {
    return call(engine, engine.device(), out, body);
  }

  private static Tensor call(Engine engine, Device device, Tensor out, BiConsumer<Arena, OpCall> body) {
    required("out", out);
    engine.enter();
    try (Arena arena = Arena.ofConfined()) {
      body.accept(arena, new OpCall(arena, device));
    } finally {
      engine.leave();
    }
    return out;
  }

  private static Tensor like(Engine engine, Tensor x) {
    return allocate(engine, activation(engine, x), x.shape());
  }

  /** The type of new outputs that go with x. */
  private static DType activation(Engine engine, Tensor x) {
    return engine.device().isCuda() ? x.dtype() : DType.F32;
  }

  private static Tensor allocate(Engine engine, DType dtype, long... shape) {
    return engine.device().isCuda()
        ? Tensor.allocate(Arena.ofAuto(), engine, dtype, shape)
        : OffHeap.allocate(Arena.ofAuto(), "out", dtype, shape);
  }

  private static Tensor required(String name, Tensor tensor) {
    if (tensor == null) {
      throw new IllegalArgumentException(name + ": a tensor expected, found null");
    }
    return tensor;
  }

  private static void checkRank(String name, Tensor tensor, int rank) {
    if (required(name, tensor).rank() != rank) {
      throw new IllegalArgumentException(
          "%s: %d dimensions expected, found shape %s".formatted(name, rank, Arrays.toString(tensor.shape())));
    }
  }
}

package org.mamba4j.checkpoint;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.mamba4j.DType;
import org.mamba4j.Family;
import org.mamba4j.ModelConfig;
import org.mamba4j.Tensor;

/** Writes GGUF files, also such as no other program would. */
public final class GgufBuilder {
  static final int UINT8 = 0;
  static final int UINT32 = 4;
  static final int INT32 = 5;
  static final int FLOAT32 = 6;
  static final int BOOL = 7;
  static final int STRING = 8;
  static final int ARRAY = 9;
  static final int UINT64 = 10;

  int version = 3;
  int alignment = 32;
  final Map<String, byte[]> metadata = new LinkedHashMap<>(); // with their types
  final List<Entry> tensors = new ArrayList<>();

  /** {@code shape} in row-major order; {@code offset} null for the next free place. */
  record Entry(String name, int type, long[] shape, byte[] data, Long offset) {}

  GgufBuilder put(String key, int type, byte[] value) {
    metadata.put(key, concat(u32(type), value));
    return this;
  }

  GgufBuilder integer(String key, long value) {
    return put(key, UINT32, u32(value));
  }

  GgufBuilder number(String key, float value) {
    return put(key, FLOAT32, u32(Float.floatToRawIntBits(value)));
  }

  GgufBuilder flag(String key, boolean value) {
    return put(key, BOOL, new byte[] {(byte) (value ? 1 : 0)});
  }

  GgufBuilder text(String key, String value) {
    return put(key, STRING, string(value));
  }

  GgufBuilder texts(String key, List<String> values) {
    byte[] head = concat(u32(STRING), u64(values.size()));
    return put(key, ARRAY, concat(head, concat(values.stream().map(GgufBuilder::string).toArray(byte[][]::new))));
  }

  GgufBuilder tensor(String name, int type, byte[] data, long... shape) {
    tensors.add(new Entry(name, type, shape, data, null));
    return this;
  }

  byte[] build() {
    var head = new ByteArrayOutputStream();
    head.writeBytes(concat(Goldens.utf8("GGUF"), u32(version), u64(tensors.size()), u64(metadata.size())));
    metadata.forEach((key, value) -> head.writeBytes(concat(string(key), value)));
    var data = new ByteArrayOutputStream();
    for (Entry tensor : tensors) {
      pad(data);
      head.writeBytes(concat(string(tensor.name), u32(tensor.shape.length)));
      for (int d = tensor.shape.length - 1; d >= 0; d--) {
        head.writeBytes(u64(tensor.shape[d]));
      }
      head.writeBytes(concat(u32(tensor.type), u64(tensor.offset == null ? data.size() : tensor.offset)));
      data.writeBytes(tensor.data);
    }
    pad(head);
    head.writeBytes(data.toByteArray());
    return head.toByteArray();
  }

  private void pad(ByteArrayOutputStream out) {
    while (out.size() % alignment != 0) {
      out.write(0);
    }
  }

  /** A golden checkpoint as llama.cpp's converter writes it, its matrices of type {@code dtype}. */
  public static byte[] golden(Path folder, DType dtype) throws IOException {
    return ofGolden(folder, dtype).build();
  }

  static GgufBuilder ofGolden(Path folder, DType dtype) throws IOException {
    try (Checkpoint checkpoint = Checkpoint.open(folder)) {
      var builder = new GgufBuilder();
      ModelConfig c = checkpoint.config();
      boolean mamba2 = c.family() == Family.MAMBA2;
      String arch = mamba2 ? "mamba2" : "mamba";
      builder
          .text("general.architecture", arch)
          .text("general.name", folder.getFileName().toString())
          .integer(arch + ".block_count", c.layers())
          .integer(arch + ".embedding_length", c.dModel())
          .integer(arch + ".ssm.conv_kernel", c.dConv())
          .integer(arch + ".ssm.inner_size", c.dInner())
          .integer(arch + ".ssm.state_size", c.dState())
          .integer(arch + ".ssm.time_step_rank", mamba2 ? c.nHeads() : c.dtRank())
          .number(arch + ".attention.layer_norm_rms_epsilon", c.normEps());
      if (mamba2) {
        builder.integer(arch + ".ssm.group_count", c.nGroups());
      } else {
        builder.flag(arch + ".ssm.dt_b_c_rms", c.family() == Family.FALCON_MAMBA);
      }
      builder.integer("tokenizer.ggml.eos_token_id", c.eosTokenIds()[0]);
      builder.add("token_embd.weight", checkpoint.embedding(), dtype);
      for (int i = 0; i < c.layers(); i++) {
        builder.addLayer("blk." + i + ".", checkpoint.layers().get(i), c, dtype);
      }
      builder.add("output_norm.weight", checkpoint.normF(), DType.F32);
      if (!c.tiedHead()) {
        builder.add("output.weight", checkpoint.lmHead(), dtype);
      }
      return builder;
    }
  }

  private void addLayer(String prefix, LayerWeights w, ModelConfig c, DType dtype) {
    add(prefix + "attn_norm.weight", w.norm(), DType.F32);
    add(prefix + "ssm_in.weight", w.inProj(), dtype);
    add(prefix + "ssm_conv1d.weight", w.convWeight(), DType.F32);
    add(prefix + "ssm_conv1d.bias", w.convBias(), DType.F32);
    add(prefix + "ssm_dt.bias", w.dtBias(), DType.F32);
    float[] a = w.aLog().toFloatArray();
    for (int i = 0; i < a.length; i++) {
      a[i] = (float) -Math.exp(a[i]);
    }
    byte[] aBytes = encode(DType.F32, a);
    if (c.family() == Family.MAMBA2) {
      tensor(prefix + "ssm_a", 0, aBytes, c.nHeads(), 1);
      add(prefix + "ssm_d", w.d().reshape(c.nHeads(), 1), DType.F32);
      add(prefix + "ssm_norm.weight", w.mixerNorm().reshape(c.nGroups(), c.dInner() / c.nGroups()), DType.F32);
    } else {
      tensor(prefix + "ssm_a", 0, aBytes, c.dInner(), c.dState());
      add(prefix + "ssm_d", w.d(), DType.F32);
      add(prefix + "ssm_x.weight", w.xProj(), dtype);
      DType narrow = c.dtRank() % dtype.blockSize() == 0 ? dtype : DType.F32;
      add(prefix + "ssm_dt.weight", w.dtProj(), narrow);
    }
    add(prefix + "ssm_out.weight", w.outProj(), dtype);
  }

  private void add(String name, Tensor tensor, DType dtype) {
    int type =
        switch (dtype) {
          case F32 -> 0;
          case F16 -> 1;
          case Q4_0 -> 2;
          case Q8_0 -> 8;
          case BF16 -> 30;
          default -> throw new IllegalArgumentException(dtype.name());
        };
    tensor(name, type, encode(dtype, tensor.toFloatArray()), tensor.shape());
  }

  static byte[] encode(DType dtype, float[] values) {
    var out = ByteBuffer.allocate((int) dtype.bytesFor(values.length)).order(ByteOrder.LITTLE_ENDIAN);
    for (int i = 0; i < values.length; i += dtype.blockSize()) {
      switch (dtype) {
        case F32 -> out.putFloat(values[i]);
        case F16 -> out.putShort(Float.floatToFloat16(values[i]));
        case BF16 -> out.putShort((short) (Float.floatToIntBits(values[i]) + 0x8000 >>> 16));
        case Q8_0 -> {
          float scale = largest(values, i) / 127;
          out.putShort(Float.floatToFloat16(scale));
          for (int j = 0; j < 32; j++) {
            out.put((byte) (scale == 0 ? 0 : Math.round(values[i + j] / scale)));
          }
        }
        case Q4_0 -> {
          float scale = largest(values, i) / 7;
          out.putShort(Float.floatToFloat16(scale));
          for (int j = 0; j < 16; j++) {
            out.put((byte) (half(values[i + j], scale) | half(values[i + j + 16], scale) << 4));
          }
        }
        default -> throw new IllegalArgumentException(dtype.name());
      }
    }
    return out.array();
  }

  private static int half(float value, float scale) {
    return scale == 0 ? 8 : Math.clamp(Math.round(value / scale) + 8, 0, 15);
  }

  private static float largest(float[] values, int from) {
    float largest = 0;
    for (int j = 0; j < 32; j++) {
      largest = Math.max(largest, Math.abs(values[from + j]));
    }
    return largest;
  }

  static byte[] string(String text) {
    byte[] bytes = Goldens.utf8(text);
    return concat(u64(bytes.length), bytes);
  }

  static byte[] u32(long value) {
    return ByteBuffer.allocate(4).order(ByteOrder.LITTLE_ENDIAN).putInt((int) value).array();
  }

  static byte[] u64(long value) {
    return ByteBuffer.allocate(8).order(ByteOrder.LITTLE_ENDIAN).putLong(value).array();
  }

  static byte[] concat(byte[]... parts) {
    var out = new ByteArrayOutputStream();
    for (byte[] part : parts) {
      out.writeBytes(part);
    }
    return out.toByteArray();
  }
}

package org.mamba4j.checkpoint;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.List;
import org.mamba4j.DType;
import org.mamba4j.checkpoint.GgufMetadata.Type;

/** Writes a GGUF file of version 3: metadata first, then the tensors one after the other. */
final class GgufWriter {
  private static final int VERSION = 3;

  /** A tensor to come; {@code shape} in row-major order. */
  record Entry(String name, DType dtype, long[] shape) {
    long bytes() {
      long elements = 1;
      for (long dim : shape) {
        elements = Math.multiplyExact(elements, dim);
      }
      return dtype.bytesFor(elements);
    }
  }

  /** Puts out exactly the bytes of a tensor. */
  @FunctionalInterface
  interface Data {
    void write(int tensor, FileChannel out) throws IOException;
  }

  private final ByteArrayOutputStream metadata = new ByteArrayOutputStream();
  private int pairs;

  GgufWriter text(String key, String value) {
    return pair(key, Type.STRING, string(value));
  }

  /** An unsigned 32-bit integer. */
  GgufWriter integer(String key, long value) {
    if (value < 0 || value > 0xffff_ffffL) {
      throw new IllegalArgumentException(key + ": 0 to 4294967295 expected, found " + value);
    }
    return pair(key, Type.UINT32, i32((int) value));
  }

  GgufWriter integers(String key, int[] values) {
    byte[][] parts = new byte[values.length + 2][];
    parts[0] = i32(Type.INT32.ordinal());
    parts[1] = i64(values.length);
    for (int i = 0; i < values.length; i++) {
      parts[i + 2] = i32(values[i]);
    }
    return pair(key, Type.ARRAY, parts);
  }

  GgufWriter number(String key, float value) {
    return pair(key, Type.FLOAT32, i32(Float.floatToRawIntBits(value)));
  }

  GgufWriter flag(String key, boolean value) {
    return pair(key, Type.BOOL, new byte[] {(byte) (value ? 1 : 0)});
  }

  private GgufWriter pair(String key, Type type, byte[]... value) {
    metadata.writeBytes(string(key));
    metadata.writeBytes(i32(type.ordinal()));
    for (byte[] part : value) {
      metadata.writeBytes(part);
    }
    pairs++;
    return this;
  }

  /** Writes the file, which appears at once and complete. */
  void write(Path path, List<Entry> tensors, Data data) throws IOException {
    byte[] head = head(tensors);
    OutputFiles.replace(
        path,
        out -> {
          OutputFiles.write(out, ByteBuffer.wrap(head));
          for (int i = 0; i < tensors.size(); i++) {
            long end = Math.addExact(pad(out), tensors.get(i).bytes());
            data.write(i, out);
            if (out.position() != end) {
              throw new IllegalStateException(
                  "tensor '%s' ends at byte %d, expected %d".formatted(tensors.get(i).name, out.position(), end));
            }
          }
          pad(out);
        });
  }

  private byte[] head(List<Entry> tensors) {
    var head = new ByteArrayOutputStream();
    head.writeBytes(i32(GgufFile.MAGIC));
    head.writeBytes(i32(VERSION));
    head.writeBytes(i64(tensors.size()));
    head.writeBytes(i64(pairs));
    head.writeBytes(metadata.toByteArray());
    long offset = 0;
    for (Entry tensor : tensors) {
      head.writeBytes(string(tensor.name));
      head.writeBytes(i32(tensor.shape.length));
      for (int d = tensor.shape.length - 1; d >= 0; d--) {
        head.writeBytes(i64(tensor.shape[d]));
      }
      head.writeBytes(i32(GgufFile.typeCode(tensor.dtype)));
      head.writeBytes(i64(offset));
      offset = aligned(Math.addExact(offset, tensor.bytes()));
    }
    return head.toByteArray();
  }

  private static long aligned(long offset) {
    return Math.multiplyExact(Math.ceilDiv(offset, GgufFile.DEFAULT_ALIGNMENT), (long) GgufFile.DEFAULT_ALIGNMENT);
  }

  /** Fills up to the alignment and returns the place reached. */
  private static long pad(FileChannel out) throws IOException {
    long place = aligned(out.position());
    OutputFiles.write(out, ByteBuffer.allocate(Math.toIntExact(place - out.position())));
    return place;
  }

  private static byte[] string(String text) {
    byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
    return ByteBuffer.allocate(Long.BYTES + bytes.length)
        .order(ByteOrder.LITTLE_ENDIAN)
        .putLong(bytes.length)
        .put(bytes)
        .array();
  }

  private static byte[] i32(int value) {
    return ByteBuffer.allocate(Integer.BYTES).order(ByteOrder.LITTLE_ENDIAN).putInt(value).array();
  }

  private static byte[] i64(long value) {
    return ByteBuffer.allocate(Long.BYTES).order(ByteOrder.LITTLE_ENDIAN).putLong(value).array();
  }
}

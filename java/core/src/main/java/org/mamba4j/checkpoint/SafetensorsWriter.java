package org.mamba4j.checkpoint;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonGenerator;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import org.mamba4j.DType;
import org.mamba4j.Tensor;

/** Writes safetensors files. */
public final class SafetensorsWriter {
  private static final JsonFactory JSON = new JsonFactory();
  private static final int ALIGNMENT = 8;

  private SafetensorsWriter() {}

  /**
   * Writes tensors, of any strides, into a file that appears at once and complete. An existing file is replaced;
   * readers that have it mapped keep the old one.
   *
   * <p>Wide element types come first, tensors of one width in the order of the map, so that every tensor is aligned.
   *
   * @param metadata strings for {@code __metadata__}; may be empty
   */
  public static void write(Path path, Map<String, Tensor> tensors, Map<String, String> metadata) throws IOException {
    if (tensors.containsKey(SafetensorsHeader.METADATA)) {
      throw new IllegalArgumentException("tensors: the name " + SafetensorsHeader.METADATA + " is reserved");
    }
    tensors.forEach(SafetensorsWriter::refuseBlocks);
    List<Map.Entry<String, Tensor>> ordered =
        tensors.entrySet().stream()
            .sorted(Comparator.comparingInt(e -> -e.getValue().dtype().byteSize()))
            .toList();
    OutputFiles.replace(
        path,
        out -> {
          OutputFiles.write(out, header(ordered, metadata));
          for (var entry : ordered) {
            writeTensor(out, entry.getValue());
          }
        });
  }

  private static void refuseBlocks(String name, Tensor tensor) {
    if (tensor.dtype().isBlock()) {
      throw new IllegalArgumentException(
          "tensor '%s': a type among %s expected, found %s, which safetensors cannot hold"
              .formatted(name, DType.safetensorsTypes(), tensor.dtype()));
    }
  }

  private static ByteBuffer header(List<Map.Entry<String, Tensor>> tensors, Map<String, String> metadata)
      throws IOException {
    var bytes = new ByteArrayOutputStream();
    try (JsonGenerator json = JSON.createGenerator(bytes)) {
      json.writeStartObject();
      if (!metadata.isEmpty()) {
        json.writeObjectFieldStart(SafetensorsHeader.METADATA);
        for (var entry : metadata.entrySet()) {
          json.writeStringField(entry.getKey(), entry.getValue());
        }
        json.writeEndObject();
      }
      long offset = 0;
      for (var entry : tensors) {
        Tensor tensor = entry.getValue();
        long end = Math.addExact(offset, tensor.dtype().bytesFor(tensor.size()));
        json.writeObjectFieldStart(entry.getKey());
        json.writeStringField("dtype", tensor.dtype().safetensorsName());
        json.writeFieldName("shape");
        json.writeArray(tensor.shape(), 0, tensor.rank());
        json.writeFieldName("data_offsets");
        json.writeArray(new long[] {offset, end}, 0, 2);
        json.writeEndObject();
        offset = end;
      }
      json.writeEndObject();
    }
    while (bytes.size() % ALIGNMENT != 0) {
      bytes.write(' ');
    }
    return ByteBuffer.allocate(Long.BYTES + bytes.size())
        .order(ByteOrder.LITTLE_ENDIAN)
        .putLong(bytes.size())
        .put(bytes.toByteArray())
        .flip();
  }

  private static void writeTensor(FileChannel out, Tensor tensor) throws IOException {
    if (!tensor.isContiguous()) {
      try (Arena arena = Arena.ofConfined()) {
        writeTensor(out, tensor.copyTo(arena));
      }
      return;
    }
    OutputFiles.write(out, tensor.segment());
  }
}

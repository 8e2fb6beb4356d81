package org.mamba4j.checkpoint;

import com.code_intelligence.jazzer.api.FuzzedDataProvider;
import com.code_intelligence.jazzer.junit.FuzzTest;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Timeout;
import org.mamba4j.Family;
import org.mamba4j.ModelConfig;
import org.mamba4j.Tensor;
import org.mamba4j.checkpoint.WeightNames.Weight;

/**
 * Whatever bytes a reader gets, it ends with a value that can be used or with a {@link CheckpointException}. Without
 * fuzzing these tests run over the committed corpus.
 */
@Timeout(60)
class ReadersFuzzTest {
  private static final Path FILE = Path.of("fuzzed");
  private static final ModelConfig NO_DIMENSIONS =
      new ModelConfig(Family.MAMBA1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, false, false, false, new int[0]);

  @FuzzTest(maxDuration = "1m")
  void safetensors(byte[] bytes) throws IOException {
    try (var file = SafetensorsFile.read(FILE, MemorySegment.ofArray(bytes), Arena.ofConfined())) {
      readAll(file);
    } catch (CheckpointException expected) {
      // refused
    }
  }

  /** The header alone, without a length before it that a fuzzer would have to get right. */
  @FuzzTest(maxDuration = "1m")
  void safetensorsHeader(byte[] json) throws IOException {
    try {
      var header = SafetensorsHeader.parse(FILE, json, 64);
      MemorySegment data = MemorySegment.ofArray(new byte[64]);
      for (var entry : header.entries().values()) {
        MemorySegment bytes = data.asSlice(entry.begin(), entry.end() - entry.begin());
        Tensor.of(bytes, entry.dtype(), entry.shape()).toFloatArray();
      }
    } catch (CheckpointException expected) {
      // refused
    }
  }

  @FuzzTest(maxDuration = "1m")
  void shardIndex(byte[] json) throws IOException {
    try {
      for (String name : ShardIndex.parse(FILE, json).values()) {
        Path resolved = Path.of("/model").resolve(name).normalize();
        if (!resolved.getParent().equals(Path.of("/model"))) {
          throw new AssertionError("outside of the folder: " + resolved);
        }
      }
    } catch (CheckpointException expected) {
      // refused
    }
  }

  @FuzzTest(maxDuration = "1m")
  void pickle(byte[] pickle) throws IOException {
    try (Arena arena = Arena.ofConfined()) {
      byte[] zip = ZipBuilder.torch(pickle, new byte[24]);
      readAll(TorchFile.read(FILE, MemorySegment.ofArray(zip), arena));
    } catch (CheckpointException expected) {
      // refused
    }
  }

  @FuzzTest(maxDuration = "1m")
  void torchFile(byte[] bytes) throws IOException {
    try (Arena arena = Arena.ofConfined()) {
      readAll(TorchFile.read(FILE, MemorySegment.ofArray(bytes), arena));
    } catch (CheckpointException expected) {
      // refused
    }
  }

  @FuzzTest(maxDuration = "1m")
  void config(byte[] json) throws IOException {
    try {
      ConfigFile.parse(FILE, json);
    } catch (CheckpointException expected) {
      // refused
    }
  }

  /** The file, its values asked for in every way, and the model that it may be. */
  @FuzzTest(maxDuration = "1m")
  void gguf(byte[] bytes) throws IOException {
    try (var file = GgufFile.read(FILE, MemorySegment.ofArray(bytes), Arena.ofShared())) {
      for (String name : file.names()) {
        file.tensor(name).toFloatArray();
      }
      for (String key : file.metadata().keys()) {
        readAll(file.metadata(), key);
      }
      Checkpoint.open(file).close();
    } catch (CheckpointException expected) {
      // refused
    }
  }

  private interface Query {
    void ask(String key) throws CheckpointException;
  }

  private static void readAll(GgufMetadata metadata, String key) {
    for (Query query :
        List.<Query>of(
            metadata::integer, metadata::number, metadata::flag, metadata::text, metadata::texts, metadata::integers)) {
      try {
        query.ask(key);
      } catch (CheckpointException expected) {
        // of another type
      }
    }
  }

  /** Tensors of any shapes under the right names, with a configuration that may fit them. */
  @FuzzTest(maxDuration = "1m")
  void checkpoint(FuzzedDataProvider data) throws IOException {
    Family family = data.pickValue(Family.values());
    List<Weight> weights =
        WeightNames.model(family, 1, data.consumeBoolean(), data.consumeBoolean(), data.consumeBoolean());
    var header = new ArrayList<String>();
    int end = 0;
    for (Weight weight : weights) {
      int rank = weight.shape().apply(NO_DIMENSIONS).length;
      var shape = new ArrayList<Integer>();
      int begin = end;
      int bytes = 4;
      for (int i = 0; i < rank; i++) {
        shape.add(data.consumeInt(0, 12));
        bytes *= shape.getLast();
      }
      end += bytes;
      header.add(
          "\"%s\":{\"dtype\":\"F32\",\"shape\":%s,\"data_offsets\":[%d,%d]}"
              .formatted(weight.name(), shape, begin, end));
    }
    byte[] json = Goldens.utf8("{" + String.join(",", header) + "}");
    ByteBuffer file = ByteBuffer.allocate(8 + json.length + end).order(ByteOrder.LITTLE_ENDIAN);
    file.putLong(json.length).put(json);
    byte[] config = data.consumeRemainingAsBytes();
    Arena arena = Arena.ofConfined();
    try {
      ConfigFile stated = ConfigFile.parse(FILE, config);
      var safetensors = SafetensorsFile.read(FILE, MemorySegment.ofArray(file.array()), Arena.ofConfined());
      new Checkpoint(new TensorIndex(FILE, List.of(safetensors)), arena, config, stated).close();
    } catch (CheckpointException expected) {
      arena.close();
    }
  }

  private static void readAll(TensorFile file) throws CheckpointException {
    for (String name : file.names()) {
      file.tensor(name).toFloatArray();
    }
  }
}

package org.mamba4j.checkpoint;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.mamba4j.checkpoint.Goldens.assertRefused;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.mamba4j.DType;
import org.mamba4j.Engine;
import org.mamba4j.EngineOptions;
import org.mamba4j.Model;
import org.mamba4j.ModelOptions;
import org.mamba4j.Ops;
import org.mamba4j.ProgressListener;
import org.mamba4j.Session;
import org.mamba4j.Tensor;
import org.mamba4j.TestData;
import org.mamba4j.WeightType;

@Timeout(120)
class GgufModelWriterTest {
  private static final ProgressListener QUIET = (what, done, total) -> {};

  @TempDir Path temp;

  private Path write(Path folder, WeightType weights, ProgressListener progress) throws IOException {
    Path path = temp.resolve("written.gguf");
    try (Checkpoint checkpoint = Checkpoint.open(folder);
        Engine engine = Engine.create(EngineOptions.defaults().withThreads(1))) {
      GgufModelWriter.write(path, "a name", checkpoint, weights, engine, progress);
    }
    return path;
  }

  private static float[] logits(Path path, WeightType weights) throws IOException {
    try (Model model = Model.load(path, ModelOptions.defaults().withWeightType(weights));
        Session session = model.newSession()) {
      return session.advanceAll(TestData.tokens(150, 256, 5)).toFloatArray();
    }
  }

  /** The file is the model as it is in memory when it is loaded with this type, bit by bit. */
  @ParameterizedTest
  @CsvSource({
    "mamba1-tied, INT8", "mamba1-tied, INT4", "mamba1-tied, F16", "mamba1-tied-bf16, INT8", "mamba1-tied-bf16, STORED",
    "mamba1-tied-original, INT8", "falcon-mamba, INT4", "falcon-mamba, F32", "mamba2-g1, INT8", "mamba2-g1-f16, INT4",
    "mamba2-g1-sharded, BF16", "mamba2-g2, INT8", "mamba2-g2, INT4", "mamba2-g2, F32"
  })
  void givesTheLogitsOfWeightsConvertedAtLoad(String golden, WeightType weights) throws IOException {
    Path folder = Goldens.folder(golden);
    var progress = new ArrayList<long[]>();
    Path path = write(folder, weights, (what, done, total) -> progress.add(new long[] {done, total}));
    assertArrayEquals(logits(folder, weights), logits(path, WeightType.STORED));
    try (Checkpoint expected = Checkpoint.open(folder);
        Checkpoint found = Checkpoint.open(path)) {
      assertEquals(expected.config(), found.config());
      assertEquals(expected.hfTensors().keySet(), found.hfTensors().keySet());
      found.hfTensors().forEach(
          (name, tensor) -> {
            DType inMemory = weights.of(name, expected.hfTensors().get(name));
            assertEquals(WeightNames.isMatrix(name) ? inMemory : DType.F32, tensor.dtype(), name);
          });
    }
    assertTrue(progress.size() > 10);
    for (int i = 1; i < progress.size(); i++) {
      assertTrue(progress.get(i - 1)[0] < progress.get(i)[0]);
    }
    assertEquals(progress.getLast()[1], progress.getLast()[0]);
    try (var files = Files.list(temp)) {
      assertEquals(List.of(path), files.toList(), "nothing is left over");
    }
  }

  /** Rows of 48 are no whole blocks and stay as they are; the head is one of its own. */
  @Test
  void whatCannotBeQuantisedStays() throws IOException {
    Path folder = Files.createDirectory(temp.resolve("model"));
    Goldens.withTensors(
        folder,
        "mamba1-untied-bias",
        (tensors, arena) -> tensors.keySet().removeIf(n -> n.matches(".*(in|out)_proj.bias")));
    Goldens.editConfig(folder, json -> json.replace("\"use_bias\": true", "\"use_bias\": false"));
    Path path = write(folder, WeightType.INT8, QUIET);
    assertArrayEquals(logits(folder, WeightType.INT8), logits(path, WeightType.STORED));
    try (Checkpoint found = Checkpoint.open(path)) {
      assertEquals(DType.F32, found.lmHead().dtype());
      assertEquals(DType.F32, found.layers().getFirst().inProj().dtype());
      assertEquals(DType.Q8_0, found.layers().getFirst().outProj().dtype());
    }
  }

  /** Matrices that are quantised in several pieces have the bytes of one piece. */
  @Test
  void largeMatrices() throws IOException {
    Path folder = Files.createDirectory(temp.resolve("model"));
    long rows = 70_000; // of 64 weights: more than two pieces
    Goldens.withTensors(
        folder,
        "mamba1-tied",
        (tensors, arena) -> {
          Tensor small = tensors.get(WeightNames.EMBEDDING);
          Tensor large = Tensor.allocate(arena, DType.F32, rows, small.dim(1));
          for (long row = 0; row < rows; row++) {
            large.select(0, row).copyFrom(small.select(0, row * 7 % small.dim(0)));
          }
          tensors.put(WeightNames.EMBEDDING, large);
        });
    Goldens.editConfig(folder, json -> json.replace("\"vocab_size\": 272", "\"vocab_size\": " + rows));
    var seen = new ArrayList<Long>();
    Path path = write(folder, WeightType.INT4, (what, done, total) -> seen.add(done));
    try (Checkpoint expected = Checkpoint.open(Goldens.folder("mamba1-tied"));
        Checkpoint found = Checkpoint.open(path);
        Engine engine = Engine.create(EngineOptions.defaults().withThreads(1))) {
      Tensor small = expected.embedding();
      Tensor blocks = Ops.quantize(engine, small, Tensor.allocate(Arena.ofAuto(), DType.Q4_0, small.shape()));
      assertEquals(expected.hfTensors().size() + 2, seen.size());
      for (long row = 0; row < rows; row++) {
        Tensor there = found.embedding().slice(0, row, row + 1);
        long from = row * 7 % small.dim(0);
        assertEquals(-1, there.segment().mismatch(blocks.slice(0, from, from + 1).segment()), "row " + row);
      }
    }
  }

  /** What other programs read in the file. */
  @Test
  void metadata() throws IOException {
    try (GgufFile file = GgufFile.open(write(Goldens.folder("mamba2-g2"), WeightType.INT8, QUIET))) {
      GgufMetadata m = file.metadata();
      assertEquals(Optional.of("mamba2"), m.text("general.architecture"));
      assertEquals(Optional.of("a name"), m.text("general.name"));
      assertEquals(7, m.integer("general.file_type").orElseThrow());
      assertEquals(256, m.integer("mamba2.vocab_size").orElseThrow());
      assertEquals(0, m.integer("mamba2.attention.head_count").orElseThrow());
      assertEquals(8, m.integer("mamba2.ssm.time_step_rank").orElseThrow());
      assertEquals(2, m.integer("mamba2.ssm.group_count").orElseThrow());
      assertEquals(Optional.of("no_vocab"), m.text("tokenizer.ggml.model"));
      assertArrayEquals(new long[] {8, 1}, file.tensor("blk.0.ssm_a").shape());
      assertArrayEquals(new long[] {8, 1}, file.tensor("blk.2.ssm_d").shape());
      assertArrayEquals(new long[] {2, 64}, file.tensor("blk.1.ssm_norm.weight").shape());
      assertArrayEquals(new long[] {192, 4}, file.tensor("blk.1.ssm_conv1d.weight").shape());
      assertEquals(DType.Q8_0, file.tensor("output.weight").dtype());
    }
    try (GgufFile file = GgufFile.open(write(Goldens.folder("falcon-mamba"), WeightType.INT4, QUIET))) {
      GgufMetadata m = file.metadata();
      assertEquals(Optional.of("mamba"), m.text("general.architecture"));
      assertEquals(Optional.of(true), m.flag("mamba.ssm.dt_b_c_rms"));
      assertEquals(2, m.integer("general.file_type").orElseThrow());
      assertEquals(4, m.integer("mamba.ssm.time_step_rank").orElseThrow());
      assertArrayEquals(new long[] {128, 16}, file.tensor("blk.0.ssm_a").shape());
    }
  }

  @Test
  void severalEndTokens() throws IOException {
    Path folder = Files.createDirectory(temp.resolve("model"));
    Goldens.withConfig(
        folder, "mamba1-tied", json -> json.replaceFirst("\"eos_token_id\": \\d+", "\"eos_token_id\": [7, 3, 9]"));
    try (Checkpoint found = Checkpoint.open(write(folder, WeightType.INT8, QUIET))) {
      assertArrayEquals(new int[] {7, 3, 9}, found.config().eosTokenIds());
    }
  }

  @Test
  void whatTheFormatCannotHold() throws IOException {
    assertRefused(
        () -> write(Goldens.folder("mamba1-untied-bias"), WeightType.INT8, QUIET),
        "model.safetensors: ", "no place for the biases of in_proj and out_proj");
    Path limited = Files.createDirectory(temp.resolve("limited"));
    String limits = "\"time_step_limit\": [0.001, 0.1]";
    Goldens.withConfig(
        limited, "mamba2-g1", json -> json.replaceFirst("(?s)\"time_step_limit\": \\[.*?\\]", limits));
    assertRefused(() -> write(limited, WeightType.INT8, QUIET), "no place for time_step_limit [0.001, 0.1]");
    Path falcon = Files.createDirectory(temp.resolve("falcon"));
    Goldens.withConfig(falcon, "falcon-mamba", json -> json.replace("_rms_eps\": 1e-06", "_rms_eps\": 1e-05"));
    assertRefused(() -> write(falcon, WeightType.INT8, QUIET), "no place for mixer_rms_eps 1.0E-5, only for 1.0E-6");
    Path conv = Files.createDirectory(temp.resolve("conv"));
    Goldens.withTensors(
        conv, "mamba1-tied", (tensors, arena) -> tensors.keySet().removeIf(n -> n.endsWith("conv1d.bias")));
    Goldens.editConfig(conv, json -> json.replace("\"use_conv_bias\": true", "\"use_conv_bias\": false"));
    assertRefused(() -> write(conv, WeightType.INT8, QUIET), "no place for a convolution without bias");
    Path zero = Files.createDirectory(temp.resolve("zero"));
    Goldens.withTensors(
        zero,
        "mamba1-tied",
        (tensors, arena) -> {
          String name = WeightNames.layer(1, WeightNames.A_LOG);
          Tensor aLog = tensors.get(name).copyTo(arena);
          aLog.setFloat(-1000, 5, 2);
          tensors.put(name, aLog);
        });
    assertRefused(() -> write(zero, WeightType.INT8, QUIET), "'blk.1.ssm_a'", "-exp(A_log) below 0", "A_log -1000.0");
    assertTrue(Files.notExists(temp.resolve("written.gguf")));
  }

  /** What was there before stays, and nothing half-written does. */
  @Test
  void failuresLeaveNothingBehind() throws IOException {
    Path folder = Files.createDirectory(temp.resolve("model"));
    Goldens.withTensors(
        folder,
        "mamba1-tied",
        (tensors, arena) -> {
          String name = WeightNames.layer(3, WeightNames.OUT_PROJ);
          Tensor weights = tensors.get(name).copyTo(arena);
          weights.setFloat(Float.NaN, 2, 9);
          tensors.put(name, weights);
        });
    Path path = Files.writeString(temp.resolve("written.gguf"), "before");
    var e = assertThrows(IllegalArgumentException.class, () -> write(folder, WeightType.INT8, QUIET));
    assertTrue(e.getMessage().startsWith("backbone.layers.3.mixer.out_proj.weight: "), e.getMessage());
    assertEquals("before", Files.readString(path));
    try (var files = Files.list(temp)) {
      assertEquals(2, files.count());
    }
  }
}

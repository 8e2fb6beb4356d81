package org.mamba4j;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.mamba4j.ModelOptions.Weights;
import org.mamba4j.checkpoint.Checkpoint;
import org.mamba4j.checkpoint.GgufBuilder;

@Timeout(120)
class WeightTypeTest {
  private static final int[] TOKENS = TestData.tokens(24, 256, 3);

  /** Holding the matrices in another type is the same as a checkpoint that stores them so. */
  @ParameterizedTest
  @CsvSource({
    "mamba1-tied, F16", "mamba1-tied, BF16", "mamba1-untied-bias, F16", "falcon-mamba, BF16", "mamba2-g2, F16",
    "mamba1-tied-bf16, F32", "mamba2-g1-f16, F32", "mamba2-g1-f16, BF16", "mamba1-tied, F32"
  })
  void convertsToOtherFloats(String golden, WeightType type, @TempDir Path folder) throws IOException {
    DType dtype = DType.valueOf(type.name());
    long bytes = 0;
    try (Checkpoint checkpoint = Checkpoint.open(TestData.golden(golden));
        Arena arena = Arena.ofConfined()) {
      Map<String, Tensor> tensors = new LinkedHashMap<>(checkpoint.hfTensors());
      for (var entry : tensors.entrySet()) {
        boolean matrix = entry.getKey().matches(".*(embeddings|lm_head|_proj)\\.weight");
        assertEquals(matrix ? dtype : entry.getValue().dtype(), type.of(entry.getKey(), entry.getValue()));
        if (matrix) {
          Tensor copy = Tensor.allocate(arena, dtype, entry.getValue().shape());
          copy.copyFrom(entry.getValue());
          entry.setValue(copy);
        }
        bytes += entry.getValue().segment().byteSize();
      }
      TestData.writeModel(folder, tensors, checkpoint);
    }
    try (Model expected = Model.load(folder)) {
      Logits found = logits(TestData.golden(golden), type);
      assertArrayEquals(logits(expected), found.values());
      assertEquals(bytes, found.weightBytes());
    }
  }

  /** int8 and int4 give the logits of the same matrices widened again, and take the bytes of their blocks. */
  @ParameterizedTest
  @CsvSource({
    "mamba1-tied, INT8", "mamba1-untied-bias, INT8", "falcon-mamba, INT8", "mamba2-g2, INT8", "mamba1-tied-bf16, INT8",
    "mamba2-g1-f16, INT8", "mamba1-tied, INT4", "mamba1-untied-bias, INT4", "falcon-mamba, INT4", "mamba2-g2, INT4"
  })
  void quantises(String golden, WeightType type, @TempDir Path folder) throws IOException {
    long bytes = 0;
    int count = 0;
    try (Checkpoint checkpoint = Checkpoint.open(TestData.golden(golden));
        Engine engine = Engine.create(EngineOptions.defaults().withThreads(1));
        Arena arena = Arena.ofConfined()) {
      Map<String, Tensor> tensors = new LinkedHashMap<>(checkpoint.hfTensors());
      for (var entry : tensors.entrySet()) {
        Tensor tensor = entry.getValue();
        String name = entry.getKey();
        if (name.matches(".*(embeddings|lm_head|in_proj|x_proj|out_proj)\\.weight") && tensor.dim(1) % 32 == 0) {
          boolean int8 = type == WeightType.INT8 || name.endsWith("x_proj.weight");
          Tensor blocks = Tensor.allocate(arena, int8 ? DType.Q8_0 : DType.Q4_0, tensor.shape());
          Ops.quantize(engine, tensor, blocks);
          assertEquals(blocks.dtype(), type.of(name, tensor));
          bytes += tensor.size() / 32 * (int8 ? 34 : 18);
          entry.setValue(Tensor.copyOf(arena, blocks.toFloatArray(), tensor.shape()));
          count++;
        } else {
          assertEquals(tensor.dtype(), type.of(name, tensor));
          bytes += tensor.segment().byteSize();
        }
      }
      TestData.writeModel(folder, tensors, checkpoint);
    }
    assertTrue(count > 4);
    assertEquals(bytes, logits(TestData.golden(golden), type).weightBytes());
    for (String target : Engine.simdTargets()) {
      ModelOptions options = ModelOptions.defaults().withSimdTarget(target);
      try (Model quantised = Model.load(TestData.golden(golden), options.withWeightType(type));
          Model widened = Model.load(folder, options)) {
        if (TestData.addsIntegers(target)) {
          double error = TestData.relativeError(logits(widened), logits(quantised));
          assertTrue(error < TestData.quantisedTolerance(target), target + ": relative error " + error);
        } else {
          assertArrayEquals(logits(widened), logits(quantised), target);
        }
      }
    }
  }

  /** What is converted does not refer to the files any more. */
  @Test
  void letsGoOfTheFiles(@TempDir Path folder) throws IOException {
    TestData.copyGolden("mamba1-tied", folder);
    var progress = new ArrayList<long[]>();
    var options =
        ModelOptions.defaults()
            .withWeightType(WeightType.INT8)
            .withProgress((what, done, total) -> progress.add(new long[] {done, total}));
    long before = Engine.nativeBytes();
    try (Model model = Model.load(folder, options)) {
      assertTrue(progress.size() > 10);
      assertEquals(progress.getLast()[1], progress.getLast()[0]);
      float[] logits = logits(model);
      Files.write(folder.resolve("model.safetensors"), new byte[0]); // truncated: a mapped page would be fatal
      assertArrayEquals(logits, logits(model));
    }
    assertEquals(before, Engine.nativeBytes());
  }

  /** Models that fit into the caches do not stay in their files, whatever was asked for. */
  @Test
  void smallModelsAreCopied(@TempDir Path folder) throws IOException {
    TestData.copyGolden("mamba2-g2", folder);
    try (Model model = Model.load(folder, ModelOptions.defaults().withWeights(Weights.MAPPED))) {
      float[] logits = logits(model);
      Files.write(folder.resolve("model.safetensors"), new byte[0]); // truncated: a mapped page would be fatal
      assertArrayEquals(logits, logits(model));
    }
  }

  @ParameterizedTest
  @CsvSource({"Q8_0, INT4", "Q8_0, F16", "Q4_0, INT8", "Q4_0, F32"})
  void refusesToConvertWhatIsQuantised(DType stored, WeightType type, @TempDir Path folder) throws IOException {
    Path file = Files.write(folder.resolve("m.gguf"), GgufBuilder.golden(TestData.golden("mamba1-tied"), stored));
    var e = assertThrows(IllegalArgumentException.class, () -> logits(file, type));
    assertTrue(e.getMessage().contains("quantised already, as " + stored), e.getMessage());
    WeightType same = stored == DType.Q8_0 ? WeightType.INT8 : WeightType.INT4;
    assertArrayEquals(logits(file, WeightType.STORED).values(), logits(file, same).values());
  }

  @ParameterizedTest
  @CsvSource({
    "70000, F16, too large for F16", "NaN, INT8, NaN", "-Infinity, INT4, NaN or a magnitude", "1e6, INT8, magnitude"
  })
  void refusesWhatDoesNotFit(float weight, WeightType type, String message, @TempDir Path folder) throws IOException {
    Path golden = TestData.golden("mamba1-tied");
    try (Checkpoint checkpoint = Checkpoint.open(golden);
        Arena arena = Arena.ofConfined()) {
      Map<String, Tensor> tensors = new LinkedHashMap<>(checkpoint.hfTensors());
      Tensor spoiled = tensors.get("backbone.layers.1.mixer.out_proj.weight").copyTo(arena);
      spoiled.setFloat(weight, 3, 5);
      tensors.put("backbone.layers.1.mixer.out_proj.weight", spoiled);
      TestData.writeModel(folder, tensors, checkpoint);
    }
    long before = Engine.nativeBytes();
    var e = assertThrows(IllegalArgumentException.class, () -> logits(folder, type));
    assertTrue(e.getMessage().startsWith("layers.1.out_proj: "), e.getMessage());
    assertTrue(e.getMessage().contains(message), e.getMessage());
    assertEquals(before, Engine.nativeBytes());
  }

  /** The bytes of both formats, block by block: a float16 scale, then the codes. */
  @ParameterizedTest
  @CsvSource({
    "zeros, Q8_0, 0000 0000000000000000 0000000000000000 0000000000000000 0000000000000000",
    "zeros, Q4_0, 0000 8888888888888888 8888888888888888",
    "ramp, Q8_0, 0020 8189919aa2aab2ba c3cbd3dbe3ecf4fc 040c141d252d353d 464e565e666f777f",
    "tiny, Q8_0, 0100 8189919aa2aab2ba c3cbd3dbe3ecf4fc 040c141d252d353d 464e565e666f777f",
    "spike, Q8_0, 0020 0000000000000000 0000000000000000 0081000000000000 0000000000000000",
    "spike, Q4_0, f02f 8808888888888888 8888888888888888",
    "codes, Q4_0, 0030 0055aaff4499ee33 88dd2277cc1166bb",
    "alternating, Q8_0, 0020 817f817f817f817f 817f817f817f817f 817f817f817f817f 817f817f817f817f",
    "alternating4, Q4_0, 0030 00ff00ff00ff00ff 00ff00ff00ff00ff"
  })
  void goldenBlocks(String name, DType dtype, String expected) {
    try (Engine engine = Engine.create(EngineOptions.defaults().withThreads(1));
        Arena arena = Arena.ofConfined()) {
      Tensor weights = Tensor.copyOf(arena, block(name), 1, 32);
      Tensor out = Ops.quantize(engine, weights, Tensor.allocate(arena, dtype, 1, 32));
      byte[] bytes = out.segment().toArray(ValueLayout.JAVA_BYTE);
      assertEquals(expected.replace(" ", ""), HexFormat.of().formatHex(bytes));
      assertArrayEquals(weights.toFloatArray(), out.toFloatArray());
    }
  }

  private static float[] block(String name) {
    float[] w = new float[32];
    for (int i = 0; i < 32; i++) {
      w[i] =
          switch (name) {
            case "zeros" -> 0;
            case "ramp" -> Math.round(-127 + i * 254 / 31f) * 0x1p-7f;
            case "tiny" -> Math.round(-127 + i * 254 / 31f) * 0x1p-24f;
            case "spike" -> i == 17 ? -127 * 0x1p-7f : 0;
            case "codes" -> (i * 5 % 16 - 8) * 0x1p-3f;
            case "alternating" -> (i % 2 == 0 ? -127 : 127) * 0x1p-7f;
            case "alternating4" -> (i % 2 == 0 ? -8 : 7) * 0x1p-3f;
            default -> throw new AssertionError(name);
          };
    }
    return w;
  }

  private record Logits(float[] values, long weightBytes) {}

  private static Logits logits(Path path, WeightType type) throws IOException {
    for (Weights place : Weights.values()) {
      try (Model model = Model.load(path, ModelOptions.defaults().withWeightType(type).withWeights(place))) {
        if (place == Weights.COPIED) {
          return new Logits(logits(model), model.weightBytes());
        }
        model.newSession().close();
      }
    }
    throw new AssertionError();
  }

  private static float[] logits(Model model) {
    try (Session session = model.newSession()) {
      return session.advanceAll(TOKENS).toFloatArray();
    }
  }
}

package org.mamba4j;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.mamba4j.ModelOptions.Weights;
import org.mamba4j.checkpoint.Checkpoint;
import org.mamba4j.checkpoint.GgufBuilder;
import org.mamba4j.checkpoint.SafetensorsFile;
import org.mamba4j.checkpoint.SafetensorsWriter;

/** GGUF files of the golden checkpoints give the golden logits. */
@Timeout(120)
class GgufModelTest {
  @ParameterizedTest
  @CsvSource({
    "mamba1-tied, F32, 2e-5", "falcon-mamba, F32, 2e-5", "mamba2-g1, F32, 2e-5", "mamba2-g2, F32, 2e-5",
    "mamba1-tied, F16, 3e-3", "falcon-mamba, F16, 3e-3", "mamba2-g1, F16, 3e-3", "mamba2-g2, F16, 3e-3",
    "mamba1-tied, BF16, 3e-2", "mamba2-g2, BF16, 3e-2"
  })
  void givesTheGoldenLogits(String golden, DType dtype, double tolerance, @TempDir Path folder) throws IOException {
    Path path = Files.write(folder.resolve("model.gguf"), GgufBuilder.golden(TestData.golden(golden), dtype));
    try (SafetensorsFile expected = SafetensorsFile.open(TestData.golden(golden).resolve("expected.safetensors"));
        Model model = Model.load(path.toString())) {
      assertEquals(path, model.folder());
      Tensor ids = expected.tensor("input_ids"); // [B, L]
      for (int b = 0; b < ids.dim(0); b++) {
        long[] row = ids.select(0, b).toLongArray();
        var tokens = new int[row.length];
        for (int i = 0; i < row.length; i++) {
          tokens[i] = (int) row[i];
        }
        try (Session session = model.newSession()) {
          float[] logits = session.advanceAll(tokens).toFloatArray();
          double error = TestData.relativeError(expected.tensor("logits").select(0, b).toFloatArray(), logits);
          assertTrue(error < tolerance, () -> golden + " " + dtype + ": " + error);
        }
      }
    }
  }

  /** Quantised matrices give the logits of the same matrices in float32. */
  @ParameterizedTest
  @CsvSource({
    "mamba1-tied, Q8_0", "falcon-mamba, Q8_0", "mamba2-g1, Q8_0", "mamba2-g2, Q8_0",
    "mamba1-tied, Q4_0", "falcon-mamba, Q4_0", "mamba2-g1, Q4_0", "mamba2-g2, Q4_0"
  })
  void quantisedMatrices(String golden, DType dtype, @TempDir Path folder) throws IOException {
    Path path = Files.write(folder.resolve("model.gguf"), GgufBuilder.golden(TestData.golden(golden), dtype));
    Path wide = Files.createDirectory(folder.resolve("wide"));
    try (Checkpoint checkpoint = Checkpoint.open(path);
        Arena arena = Arena.ofConfined()) {
      var tensors = new LinkedHashMap<String, Tensor>();
      checkpoint
          .hfTensors()
          .forEach((name, tensor) -> tensors.put(name, Tensor.copyOf(arena, tensor.toFloatArray(), tensor.shape())));
      TestData.writeModel(wide, tensors, checkpoint);
      assertThrows(
          IllegalArgumentException.class,
          () -> SafetensorsWriter.write(wide.resolve("refused"), checkpoint.hfTensors(), Map.of()));
    }
    int[] tokens = TestData.tokens(41, 256, 1);
    float[] expected;
    try (Model model = Model.load(wide);
        Session session = model.newSession()) {
      expected = session.advanceAll(tokens).toFloatArray();
    }
    double tolerance = TestData.quantisedTolerance(Engine.simdTargets().getFirst());
    for (Weights weights : Weights.values()) {
      try (Model model = Model.load(path, ModelOptions.defaults().withWeights(weights));
          Session session = model.newSession()) {
        double error = TestData.relativeError(expected, session.advanceAll(tokens).toFloatArray());
        assertTrue(error < tolerance, () -> golden + " " + dtype + ": " + error);
        session.reset();
        for (int token : tokens) {
          session.advance(token);
        }
        float[] last = Arrays.copyOfRange(expected, expected.length - (int) session.logits().size(), expected.length);
        double decodeError = TestData.relativeError(last, session.logits().toFloatArray());
        assertTrue(decodeError < tolerance, () -> golden + " " + dtype + ", token by token: " + decodeError);
      }
    }
  }
}

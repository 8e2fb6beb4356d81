package org.mamba4j.integration;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.mamba4j.ActivationType;
import org.mamba4j.Engine;
import org.mamba4j.EngineOptions;
import org.mamba4j.Model;
import org.mamba4j.ModelOptions;
import org.mamba4j.Session;
import org.mamba4j.WeightType;

/** Activations rounded to bfloat16: a small error where the processor multiplies that type, and nothing elsewhere. */
@Timeout(120)
class ActivationTypeTest {
  static List<Path> families() {
    return Goldens.families();
  }

  private static boolean multipliesBfloat16(String simdTarget) {
    return simdTarget.equals("avx3_bf16") || simdTarget.equals("amx");
  }

  @ParameterizedTest
  @MethodSource("families")
  void aSmallErrorWhereTheProcessorRounds(Path folder) throws IOException {
    for (String target : Engine.simdTargets()) {
      try (Engine engine = Engine.create(EngineOptions.defaults().withSimdTarget(target))) {
        for (WeightType weights : List.of(WeightType.BF16, WeightType.F16)) {
          ModelOptions options = ModelOptions.defaults().withEngine(engine).withWeightType(weights);
          float[] expected = logits(folder, options);
          float[] found = logits(folder, options.withActivationType(ActivationType.BF16));
          if (multipliesBfloat16(target) && weights == WeightType.BF16) {
            assertTrue(!Arrays.equals(expected, found), target);
            Goldens.assertClose(expected, found, 3e-2, "logits, " + target);
          } else {
            assertArrayEquals(expected, found, target);
          }
        }
      }
    }
  }

  private static float[] logits(Path folder, ModelOptions options) throws IOException {
    try (Model model = Model.load(folder, options);
        Session session = model.newSession()) {
      session.advance(3, 1, 4, 1, 5, 9, 2, 6);
      return session.logits().toFloatArray();
    }
  }

  /** However the tokens are split: the same bits in Mamba-1, in Mamba-2 as good as. Snapshots go either way. */
  @ParameterizedTest
  @MethodSource("families")
  void splitsAndSnapshots(Path folder) throws IOException {
    ModelOptions options = Goldens.options().withWeightType(WeightType.BF16);
    try (Model exact = Model.load(folder, options);
        Model model = Model.load(folder, options.withActivationType(ActivationType.BF16));
        Session whole = model.newSession();
        Session split = model.newSession();
        Session restored = model.newSession();
        Session other = exact.newSession()) {
      assertEquals(exact.fingerprint(), model.fingerprint());
      int[] ids = new Random(1).ints(61, 0, Math.toIntExact(model.config().vocabSize())).toArray();
      whole.advance(ids);
      for (int[] part : List.of(Arrays.copyOf(ids, 40), Arrays.copyOfRange(ids, 40, 60), new int[] {ids[60]})) {
        split.advance(part);
      }
      float[] expected = whole.logits().toFloatArray();
      if (folder.endsWith("mamba2-g2")) {
        Goldens.assertClose(expected, split.logits().toFloatArray(), 1e-2, "logits");
      } else if (!Goldens.DEVICE.isCuda()) {
        assertArrayEquals(expected, split.logits().toFloatArray());
      }
      other.restore(whole.snapshot());
      restored.restore(other.snapshot());
      whole.advance(7);
      restored.advance(7);
      assertArrayEquals(whole.logits().toFloatArray(), restored.logits().toFloatArray());
    }
  }
}

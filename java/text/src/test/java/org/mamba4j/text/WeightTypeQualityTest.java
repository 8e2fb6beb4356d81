package org.mamba4j.text;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.EnumMap;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.mamba4j.ModelOptions;
import org.mamba4j.WeightType;

/** What quantised weights cost the demo model in perplexity, on Java sources that it was not trained on. */
class WeightTypeQualityTest {
  private static final Path ROOT = Path.of("../..");
  private static final String[] SOURCES = {"Session.java", "checkpoint/SafetensorsHeader.java", "checkpoint/ConfigFile.java"};

  @Test
  void perplexityStaysWithinItsBounds() throws IOException {
    StringBuilder text = new StringBuilder();
    for (String source : SOURCES) {
      text.append(Files.readString(ROOT.resolve("java/core/src/main/java/org/mamba4j").resolve(source)));
    }
    Map<WeightType, Double> perplexity = new EnumMap<>(WeightType.class);
    for (WeightType type : new WeightType[] {WeightType.STORED, WeightType.INT8, WeightType.INT4}) {
      try (TextModel model = TextModel.load(Fixtures.DEMO_MODEL, ModelOptions.defaults().withWeightType(type))) {
        Score score = model.score(text.toString());
        assertTrue(score.tokens().length > 4_000, "tokens: " + score.tokens().length);
        perplexity.put(type, score.perplexity());
      }
    }
    double stored = perplexity.get(WeightType.STORED);
    assertEquals(stored, perplexity.get(WeightType.INT8), 0.005 * stored, perplexity.toString());
    assertEquals(stored, perplexity.get(WeightType.INT4), 0.04 * stored, perplexity.toString());
  }
}

package org.mamba4j.integration;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import org.junit.jupiter.api.Test;
import org.mamba4j.Model;
import org.mamba4j.text.FinishReason;
import org.mamba4j.text.GenerationOptions;
import org.mamba4j.text.GenerationResult;
import org.mamba4j.text.TextModel;

/** The bundled model continues a known prompt with known tokens. */
class DemoModelTest {
  static final String PROMPT = "public class Matrix {\n    private final double[] data;\n";
  static final int[] PROMPT_IDS = {0, 873, 564, 510, 1795, 274, 271, 451, 372, 861, 546, 774, 27, 199};
  static final int[] CONTINUATION = {
    335, 350, 510, 1795, 8, 2050, 546, 774, 9, 274, 279, 408, 14, 1479, 294, 774, 27, 271, 288, 335
  };

  @Test
  void continuesTextWithTheKnownTokens() throws IOException {
    try (TextModel model = TextModel.load(Goldens.DEMO_MODEL, Goldens.options())) {
      GenerationOptions options = GenerationOptions.defaults().withMaxNewTokens(CONTINUATION.length);
      GenerationResult result = model.generate(PROMPT, options);
      assertArrayEquals(PROMPT_IDS, result.promptTokens());
      assertArrayEquals(CONTINUATION, result.tokens());
      assertEquals(FinishReason.LENGTH, result.finishReason());
      assertEquals(model.tokenizer().decode(CONTINUATION), result.text());
      assertArrayEquals(CONTINUATION, model.generate(PROMPT_IDS, options).tokens(), "from ids");
    }
  }

  @Test
  void onlyTheCpuReadsTheFileAfterLoading() throws IOException {
    try (Model model = Model.load(Goldens.DEMO_MODEL, Goldens.options())) {
      String file = Goldens.DEMO_MODEL.resolve("model.safetensors").toRealPath().toString();
      assertEquals(!model.engine().device().isCuda(), Files.readString(Path.of("/proc/self/maps")).contains(file));
    }
  }

  @Test
  void streamsTheSameText() throws IOException {
    try (TextModel model = TextModel.load(Goldens.DEMO_MODEL, Goldens.options())) {
      StringBuilder streamed = new StringBuilder();
      int[] ids = new int[CONTINUATION.length];
      GenerationResult result =
          model.generate(
              PROMPT,
              GenerationOptions.defaults().withMaxNewTokens(CONTINUATION.length),
              token -> {
                streamed.append(token.text());
                ids[token.index()] = token.id();
              });
      assertArrayEquals(CONTINUATION, ids);
      assertEquals(result.text(), streamed.toString(), Arrays.toString(result.tokens()));
    }
  }
}

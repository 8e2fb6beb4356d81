package org.mamba4j.checkpoint;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.mamba4j.checkpoint.Goldens.assertRefused;

import java.io.IOException;
import java.nio.file.Path;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class ShardIndexTest {
  private static final Path FILE = Path.of("model.safetensors.index.json");

  private static Map<String, String> parse(String json) throws IOException {
    return ShardIndex.parse(FILE, Goldens.utf8(json));
  }

  @Test
  void mapsTensorsToFiles() throws IOException {
    assertEquals(
        Map.of("a", "model-00001-of-00002.safetensors", "b", "model-00002-of-00002.safetensors"),
        parse(
            """
            {"metadata": {"total_size": 1e400, "other": [null, {}]},
             "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"""));
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "../model.safetensors", "/etc/passwd", "a/b", "a\\\\b", "..", ".", "", "C:model", ".hidden", "a\\u0000b",
        "a\\nb", "model.safetensors/", "%2e%2e", "~"
      })
  void onlyPlainNamesInsideOfTheFolder(String name) {
    assertRefused(
        () -> parse("{\"weight_map\":{\"w\":\"" + name + "\"}}"),
        FILE.toString(), "tensor 'w'", "a plain file name inside of the folder", "found");
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "{}", "[]", "", "{\"weight_map\":[]}", "{\"weight_map\":{}}", "{\"weight_map\":null}",
        "{\"weight_map\":{\"w\":1}}", "{\"weight_map\":{\"w\":null}}", "{\"weight_map\":{\"w\":\"a\",\"w\":\"b\"}}",
        "{\"weight_map\":{\"w\":\"a\"}} trailing"
      })
  void indicesThatAreNone(String json) {
    assertRefused(() -> parse(json), FILE.toString());
  }
}

package org.mamba4j.checkpoint;

import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.function.UnaryOperator;
import org.junit.jupiter.api.function.Executable;
import org.mamba4j.Tensor;
import org.mamba4j.TestData;

/** The golden checkpoints of {@code tests/goldens}, and copies of them with something changed. */
final class Goldens {
  private Goldens() {}

  static Path folder(String name) {
    return TestData.golden(name);
  }

  /** A copy whose configuration went through {@code edit}. */
  static Path withConfig(Path target, String golden, UnaryOperator<String> edit) throws IOException {
    TestData.copyGolden(golden, target);
    return editConfig(target, edit);
  }

  /** Changes the configuration of a copy. */
  static Path editConfig(Path folder, UnaryOperator<String> edit) throws IOException {
    Path config = folder.resolve("config.json");
    String before = Files.readString(config);
    String after = edit.apply(before);
    assertFalse(before.equals(after), "the edit changes nothing");
    Files.writeString(config, after);
    return folder;
  }

  /** A change of a golden's tensors. */
  @FunctionalInterface
  interface Edit {
    void apply(Map<String, Tensor> tensors, Arena arena) throws IOException;
  }

  /** A copy whose tensors went through {@code edit}. */
  static Path withTensors(Path target, String golden, Edit edit) throws IOException {
    Files.copy(folder(golden).resolve("config.json"), target.resolve("config.json"));
    try (var file = SafetensorsFile.open(folder(golden).resolve("model.safetensors"));
        Arena arena = Arena.ofConfined()) {
      var tensors = new LinkedHashMap<String, Tensor>();
      for (String name : file.names()) {
        tensors.put(name, file.tensor(name));
      }
      edit.apply(tensors, arena);
      SafetensorsWriter.write(target.resolve("model.safetensors"), tensors, Map.of("format", "pt"));
    }
    return target;
  }

  static byte[] utf8(String text) {
    return text.getBytes(StandardCharsets.UTF_8);
  }

  /** The call fails, and its message has all these parts. */
  static void assertRefused(Executable call, String... parts) {
    String message = assertThrows(CheckpointException.class, call).getMessage();
    for (String part : parts) {
      assertTrue(message.contains(part), () -> "'" + part + "' expected in: " + message);
    }
  }
}

package org.mamba4j;

import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.mamba4j.checkpoint.Checkpoint;
import org.mamba4j.checkpoint.SafetensorsWriter;
import org.mamba4j.internal.NativeLibrary;

/** Finds the repository's data and makes inputs. */
public final class TestData {
  /** A checkpoint of every family and layout. */
  public static final List<String> CHECKPOINTS =
      List.of(
          "mamba1-tied", "mamba1-untied-bias", "mamba1-tied-bf16", "mamba1-tied-original", "falcon-mamba", "mamba2-g1",
          "mamba2-g1-f16", "mamba2-g1-original", "mamba2-g1-sharded", "mamba2-g2");

  private TestData() {}

  /** The repository. */
  public static Path root() {
    Path folder = Path.of("").toAbsolutePath();
    while (folder != null && !Files.isDirectory(folder.resolve("tests/goldens"))) {
      folder = folder.getParent();
    }
    if (folder == null) {
      throw new AssertionError("no tests/goldens above " + Path.of("").toAbsolutePath());
    }
    return folder;
  }

  /** A file or folder of tests/goldens. */
  public static Path golden(String name) {
    return root().resolve("tests/goldens").resolve(name);
  }

  /** Copies the files of a golden checkpoint into {@code folder}. */
  public static void copyGolden(String name, Path folder) throws IOException {
    try (var files = Files.list(golden(name))) {
      for (Path file : files.toList()) {
        Files.copy(file, folder.resolve(file.getFileName()));
      }
    }
  }

  /** Makes {@code folder} a model with these tensors and the configuration of {@code like}. */
  public static void writeModel(Path folder, Map<String, Tensor> tensors, Checkpoint like) throws IOException {
    SafetensorsWriter.write(folder.resolve("model.safetensors"), tensors, Map.of("format", "pt"));
    Files.writeString(folder.resolve("config.json"), like.hfConfigJson());
  }

  /** The library that the tests run on. */
  public static Path nativeLibrary() throws IOException {
    String property = System.getProperty(NativeLibrary.PROPERTY);
    String named = property == null || property.isEmpty() ? System.getenv(NativeLibrary.VARIABLE) : property;
    if (named != null && !named.isEmpty()) {
      return Path.of(named);
    }
    String platform = System.getProperty("os.name") + "-" + System.getProperty("os.arch");
    String name = "/org/mamba4j/native/" + platform + "/libmamba4j.so";
    try (InputStream packed = Model.class.getResourceAsStream(name)) {
      Path copy = Files.createTempFile("libmamba4j", ".so");
      copy.toFile().deleteOnExit();
      Files.copy(packed, copy, StandardCopyOption.REPLACE_EXISTING);
      return copy;
    }
  }

  /** {@code count} ids below {@code vocabulary}, the same for the same seed. */
  public static int[] tokens(int count, long vocabulary, long seed) {
    return new Random(seed).ints(count, 0, Math.toIntExact(vocabulary)).toArray();
  }

  /** Whether an instruction set adds quantised weights times activations of 16 bits in integers. */
  public static boolean addsIntegers(String simdTarget) {
    return simdTarget.matches("amx|avx3_bf16|.*_vnni|.*_dotprod");
  }

  /** How far the logits of quantised matrices may be from those of the same matrices widened, on an instruction set. */
  public static double quantisedTolerance(String simdTarget) {
    return addsIntegers(simdTarget) ? 5e-4 : 1e-5;
  }

  /** |found - expected| / |expected|, Euclidean. */
  public static double relativeError(float[] expected, float[] found) {
    double difference = 0;
    double norm = 0;
    for (int i = 0; i < expected.length; i++) {
      double d = (double) found[i] - expected[i];
      difference += d * d;
      norm += (double) expected[i] * expected[i];
    }
    return expected.length == found.length ? Math.sqrt(difference / norm) : Double.POSITIVE_INFINITY;
  }
}

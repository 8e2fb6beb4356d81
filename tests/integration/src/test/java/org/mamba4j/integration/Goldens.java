package org.mamba4j.integration;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Stream;
import org.mamba4j.Device;
import org.mamba4j.ModelOptions;
import org.mamba4j.Tensor;
import org.mamba4j.checkpoint.SafetensorsFile;

/** The golden checkpoints and how their results are compared. */
final class Goldens {
  static final Path ROOT = root();
  static final Path DEMO_MODEL = ROOT.resolve("tests/models/mamba2-java-9m");

  /** Where models run: the system property mamba4j.test.device, the CPU if it is not set. */
  static final Device DEVICE = Device.parse(System.getProperty("mamba4j.test.device", "cpu"));

  private Goldens() {}

  /** How tests load models. */
  static ModelOptions options() {
    return ModelOptions.defaults().withDevice(DEVICE);
  }

  /**
   * Relative error allowed to a golden checkpoint. The CPU computes in float32, in which 16-bit weights are exact; on a
   * GPU activations have the type of the weights.
   */
  static double tolerance(Path folder) {
    if (!DEVICE.isCuda()) {
      return 1e-5;
    }
    return folder.toString().matches(".*f16(-original)?") ? 2e-2 : 1e-4;
  }

  /** Every golden checkpoint folder. */
  static List<Path> folders() {
    try (Stream<Path> files = Files.list(ROOT.resolve("tests/goldens"))) {
      List<Path> folders = files.filter(Files::isDirectory).sorted().toList();
      assertTrue(folders.size() >= 10, "found only " + folders);
      return folders;
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** One folder of each family. */
  static List<Path> families() {
    return Stream.of("mamba1-untied-bias", "falcon-mamba", "mamba2-g2").map(Goldens::folder).toList();
  }

  static Path folder(String name) {
    return ROOT.resolve("tests/goldens").resolve(name);
  }

  static List<Path> ops(String prefix) throws IOException {
    try (Stream<Path> files = Files.list(ROOT.resolve("tests/goldens"))) {
      List<Path> ops = files.filter(f -> f.getFileName().toString().startsWith(prefix)).sorted().toList();
      assertEquals(3, ops.size(), prefix);
      return ops;
    }
  }

  /** Expected results; an -original folder holds the weights of the one without that suffix. */
  static Expected expected(Path folder) throws IOException {
    String name = folder.getFileName().toString().replace("-original", "");
    return new Expected(folder.resolveSibling(name).resolve("expected.safetensors"));
  }

  /** Results of the float64 reference. */
  static final class Expected implements AutoCloseable {
    private final SafetensorsFile file;

    Expected(Path path) throws IOException {
      file = SafetensorsFile.open(path);
    }

    Tensor tensor(String name) throws IOException {
      return file.tensor(name);
    }

    /** Row by row. */
    int[][] ids(String name) throws IOException {
      Tensor ids = file.tensor(name);
      int[][] rows = new int[Math.toIntExact(ids.dim(0))][];
      for (int i = 0; i < rows.length; i++) {
        rows[i] = Arrays.stream(ids.select(0, i).toLongArray()).mapToInt(Math::toIntExact).toArray();
      }
      return rows;
    }

    @Override
    public void close() {
      file.close();
    }
  }

  /** |found - expected| / |expected|, Euclidean norms in float64. */
  static double relativeError(float[] found, float[] expected) {
    assertEquals(expected.length, found.length);
    double difference = 0;
    double norm = 0;
    for (int i = 0; i < expected.length; i++) {
      double d = (double) found[i] - expected[i];
      difference += d * d;
      norm += (double) expected[i] * expected[i];
    }
    return Math.sqrt(difference / norm);
  }

  static void assertClose(Tensor expected, Tensor found, double tolerance, String what) {
    assertEquals(Arrays.toString(expected.shape()), Arrays.toString(found.shape()), what + ": shape");
    assertClose(expected.toFloatArray(), found.toFloatArray(), tolerance, what);
  }

  static void assertClose(float[] expected, float[] found, double tolerance, String what) {
    double error = relativeError(found, expected);
    assertTrue(error <= tolerance, what + ": relative error " + error + ", allowed " + tolerance);
  }

  private static Path root() {
    Path folder = Path.of("").toAbsolutePath();
    while (!Files.isDirectory(folder.resolve("tests/goldens"))) {
      folder = folder.getParent();
    }
    return folder;
  }
}

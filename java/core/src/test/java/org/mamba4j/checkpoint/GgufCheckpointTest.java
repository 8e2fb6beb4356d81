package org.mamba4j.checkpoint;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.mamba4j.checkpoint.Goldens.assertRefused;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Map;
import java.util.function.Consumer;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.mamba4j.DType;
import org.mamba4j.ModelConfig;
import org.mamba4j.Tensor;
import org.mamba4j.TestData;

class GgufCheckpointTest {
  @TempDir Path folder;

  private Path write(GgufBuilder builder) throws IOException {
    return Files.write(folder.resolve("model.gguf"), builder.build());
  }

  private void assertEditRefused(String golden, Consumer<GgufBuilder> edit, String... parts) throws IOException {
    GgufBuilder builder = GgufBuilder.ofGolden(Goldens.folder(golden), DType.F32);
    edit.accept(builder);
    Path path = write(builder);
    assertRefused(() -> Checkpoint.open(path), parts);
    assertRefused(() -> Checkpoint.open(path), "model.gguf: ");
  }

  private static void replace(GgufBuilder builder, String name, int type, byte[] data, long... shape) {
    builder.tensors.removeIf(tensor -> tensor.name().equals(name));
    builder.tensor(name, type, data, shape);
  }

  @ParameterizedTest
  @ValueSource(strings = {"mamba1-tied", "falcon-mamba", "mamba2-g1", "mamba2-g2"})
  void holdsWhatTheGoldenHolds(String golden) throws IOException {
    Path path = write(GgufBuilder.ofGolden(Goldens.folder(golden), DType.F32));
    try (Checkpoint expected = Checkpoint.open(Goldens.folder(golden));
        Checkpoint found = Checkpoint.open(path);
        Checkpoint inFolder = Checkpoint.open(folder)) {
      ModelConfig c = expected.config();
      boolean mamba2 = c.nHeads() > 0;
      assertEquals(
          new ModelConfig(
              c.family(), c.layers(), c.vocabSize(), c.dModel(), c.dInner(), c.dState(), c.dConv(), c.dtRank(),
              c.nHeads(), c.headDim(), c.nGroups(), mamba2 ? 256 : 0, c.normEps(), c.mixerNormEps(), c.dtMin(),
              c.dtMax(), c.tiedHead(), c.projBias(), c.convBias(), c.eosTokenIds()),
          found.config());
      assertEquals(found.config(), inFolder.config());
      assertEquals(path, found.files().getFirst());
      assertEquals(expected.tensorNames(), found.tensorNames());
      for (Map.Entry<String, Tensor> e : expected.hfTensors().entrySet()) {
        Tensor tensor = found.hfTensors().get(e.getKey());
        assertArrayEquals(e.getValue().shape(), tensor.shape(), e.getKey());
        float[] values = e.getValue().toFloatArray();
        if (e.getKey().endsWith("A_log")) {
          assertSameA(values, tensor.toFloatArray());
        } else {
          assertArrayEquals(values, tensor.toFloatArray(), e.getKey());
        }
      }
      assertTrue(found.hfConfigJson().contains("\"model_type\""));
    }
  }

  /** Several A_log may have the same A, which is all that the file holds. */
  private static void assertSameA(float[] expected, float[] found) {
    for (int i = 0; i < expected.length; i++) {
      assertEquals((float) -Math.exp(expected[i]), (float) -Math.exp(found[i]));
    }
  }

  @Test
  void aLogIsTheNearestThereIs() {
    float[] several =
        new float[] {-1, -16, -0.001f, -1e-30f, -Float.MIN_VALUE, -Float.MAX_VALUE, -3.14159f, -0.999999f};
    for (float a : several) {
      float best = GgufWeights.aLog(a);
      double error = Math.abs(Math.exp(best) + a);
      for (float other : new float[] {Math.nextDown(best), Math.nextUp(best), (float) Math.log(-(double) a)}) {
        assertTrue(error <= Math.abs(Math.exp(other) + a), () -> a + ": " + best + " against " + other);
      }
    }
    assertEquals(0, GgufWeights.aLog(-1));
  }

  @Test
  void quantisedMatricesStayInPlace() throws IOException {
    for (DType dtype : new DType[] {DType.Q8_0, DType.Q4_0}) {
      Path path = write(GgufBuilder.ofGolden(Goldens.folder("falcon-mamba"), dtype));
      try (Checkpoint expected = Checkpoint.open(Goldens.folder("falcon-mamba"));
          Checkpoint found = Checkpoint.open(path)) {
        assertEquals(dtype, found.embedding().dtype());
        assertEquals(dtype, found.lmHead().dtype());
        LayerWeights layer = found.layers().getLast();
        assertEquals(dtype, layer.inProj().dtype());
        assertEquals(dtype, layer.xProj().dtype());
        assertEquals(DType.F32, layer.dtProj().dtype(), "its rows are no whole blocks");
        assertTrue(layer.inProj().segment().isReadOnly(), "a view on the file");
        float[] exact = expected.layers().getLast().inProj().toFloatArray();
        float[] near = layer.inProj().toFloatArray();
        for (int block = 0; block < exact.length; block += 32) {
          float largest = 0;
          for (int i = block; i < block + 32; i++) {
            largest = Math.max(largest, Math.abs(exact[i]));
          }
          for (int i = block; i < block + 32; i++) {
            assertEquals(exact[i], near[i], largest * (dtype == DType.Q8_0 ? 0.6f / 127 : 0.6f / 7));
          }
        }
      }
    }
  }

  @Test
  void narrowRowsCannotBeQuantised() throws IOException {
    assertEditRefused(
        "mamba1-tied",
        b -> replace(b, "blk.0.ssm_dt.weight", 8, new byte[544], 128, 4),
        "'blk.0.ssm_dt.weight'",
        "Q8_0 rows of a multiple of 32",
        "[128, 4]");
  }

  @Test
  void onlyMatricesMayBeQuantised() throws IOException {
    assertEditRefused(
        "mamba1-tied", b -> replace(b, "blk.1.ssm_d", 8, new byte[136], 128), "'blk.1.ssm_d'", "F32", "Q8_0");
    assertEditRefused(
        "mamba1-tied", b -> replace(b, "blk.0.ssm_a", 2, new byte[1152], 64, 32), "'blk.0.ssm_a'", "F32", "Q4_0");
    assertEditRefused(
        "mamba2-g1", b -> replace(b, "blk.0.ssm_norm.weight", 8, new byte[136], 1, 128), "'blk.0.ssm_norm", "Q8_0");
  }

  @Test
  void dimensionsThatContradictTheTensors() throws IOException {
    for (String key :
        new String[] {
          "block_count", "embedding_length", "ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.time_step_rank"
        }) {
      assertEditRefused("mamba1-tied", b -> b.integer("mamba." + key, 7), "mamba." + key + " 7 contradicts");
      assertEditRefused("mamba1-tied", b -> b.integer("mamba." + key, 0), "'mamba." + key + "'", "found 0");
      assertEditRefused(
          "mamba1-tied", b -> b.metadata.remove("mamba." + key), "'mamba." + key + "'", "found nothing");
    }
    assertEditRefused("mamba2-g2", b -> b.integer("mamba2.ssm.time_step_rank", 4), "time_step_rank 4 contradicts");
    assertEditRefused("mamba2-g2", b -> b.integer("mamba2.ssm.group_count", 3), "group_count 3 must divide");
    assertEditRefused("mamba2-g2", b -> b.integer("mamba2.ssm.group_count", 4), "d_state of the tensors");
    String eps = "mamba.attention.layer_norm_rms_epsilon";
    assertEditRefused("mamba1-tied", b -> b.number(eps, 0), eps, "a positive number", "0.0");
    assertEditRefused("mamba1-tied", b -> b.metadata.remove(eps), eps, "nothing");
    assertEditRefused(
        "mamba1-tied", b -> b.integer("tokenizer.ggml.eos_token_id", 0xffffffffL), "eos_token_id", "4294967295");
  }

  @Test
  void otherArchitectures() throws IOException {
    for (String name : new String[] {"llama", "jamba", "falcon-h1", "granitehybrid"}) {
      assertEditRefused(
          "mamba1-tied", b -> b.text("general.architecture", name), "mamba or mamba2", "found '" + name + "'");
    }
    assertEditRefused("mamba1-tied", b -> b.metadata.remove("general.architecture"), "found nothing");
  }

  @Test
  void tensorsThatAreMissingOrTooMany() throws IOException {
    assertEditRefused(
        "mamba1-tied",
        b -> b.tensors.removeIf(t -> t.name().equals("blk.2.ssm_x.weight")),
        "1 tensor missing: 'blk.2.ssm_x.weight'");
    assertEditRefused(
        "mamba1-tied",
        b -> b.tensor("blk.0.ssm_norm.weight", 0, new byte[512], 128).tensor("rope_freqs.weight", 0, new byte[4], 1),
        "2 tensors not expected: 'blk.0.ssm_norm.weight', 'rope_freqs.weight'");
    assertEditRefused("mamba1-tied", b -> b.tensors.removeIf(t -> t.name().startsWith("blk")), "'blk.0.ssm_in.weight'");
  }

  @Test
  void shapes() throws IOException {
    assertEditRefused(
        "mamba1-tied",
        b -> replace(b, "blk.1.ssm_out.weight", 0, new byte[128 * 64 * 4], 128, 64),
        "'blk.1.ssm_out.weight'",
        "[64, 128]",
        "[128, 64]");
    assertEditRefused(
        "mamba1-tied", b -> replace(b, "blk.1.ssm_conv1d.weight", 0, new byte[2048], 512), "ssm_conv1d", "[512]");
    byte[] negative = GgufBuilder.encode(DType.F32, new float[] {-1, -1, -1, -1, -1, -1, -1, -1});
    assertEditRefused(
        "mamba2-g2", b -> replace(b, "blk.0.ssm_a", 0, negative, 1, 8), "'blk.0.ssm_a'", "[heads, 1]", "[1, 8]");
    assertEditRefused(
        "mamba2-g2", b -> replace(b, "blk.0.ssm_norm.weight", 0, new byte[512], 2, 8, 8), "n_groups", "[2, 8, 8]");
  }

  @Test
  void aIsNegative() throws IOException {
    for (float wrong : new float[] {0, -0f, 1, Float.NaN, Float.NEGATIVE_INFINITY}) {
      float[] values = new float[8];
      Arrays.fill(values, -1);
      values[3] = wrong;
      assertEditRefused(
          "mamba2-g2",
          b -> replace(b, "blk.1.ssm_a", 0, GgufBuilder.encode(DType.F32, values), 8, 1),
          "'blk.1.ssm_a'",
          "A below 0 and finite",
          wrong + " at element 3");
    }
  }

  @Test
  void dimensionsOfOneMayBeLeftOut() throws IOException {
    GgufBuilder builder = GgufBuilder.ofGolden(Goldens.folder("mamba2-g1"), DType.F32);
    byte[] norm = new byte[512];
    replace(builder, "blk.0.ssm_norm.weight", 0, norm, 128);
    try (Checkpoint checkpoint = Checkpoint.open(write(builder))) {
      assertArrayEquals(new long[] {128}, checkpoint.layers().getFirst().mixerNorm().shape());
    }
  }

  @Test
  void folders() throws IOException {
    byte[] bytes = GgufBuilder.ofGolden(Goldens.folder("mamba1-tied"), DType.F16).build();
    Files.write(folder.resolve("b.gguf"), bytes);
    Files.write(folder.resolve("a.gguf"), bytes);
    assertRefused(() -> Checkpoint.open(folder), "expected one GGUF file", "'a.gguf' and 'b.gguf'");
    TestData.copyGolden("mamba1-tied", folder);
    try (Checkpoint checkpoint = Checkpoint.open(folder)) {
      assertEquals(DType.F32, checkpoint.embedding().dtype(), "model.safetensors goes first");
    }
    Path text = Files.writeString(folder.resolve("text"), "text here");
    assertRefused(() -> Checkpoint.open(text), "expected GGUF");
  }
}

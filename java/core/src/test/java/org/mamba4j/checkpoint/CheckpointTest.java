package org.mamba4j.checkpoint;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.mamba4j.checkpoint.Goldens.assertRefused;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.function.UnaryOperator;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.mamba4j.DType;
import org.mamba4j.Family;
import org.mamba4j.ModelConfig;
import org.mamba4j.Tensor;
import org.mamba4j.TestData;

class CheckpointTest {
  private static final String LAYER_1 = "backbone.layers.1.mixer.";

  @TempDir Path folder;

  private static void assertSameTensors(Checkpoint expected, Checkpoint actual) {
    assertEquals(expected.tensorNames(), actual.tensorNames());
    for (var e : expected.hfTensors().entrySet()) {
      Tensor other = actual.hfTensors().get(e.getKey());
      assertEquals(e.getValue().dtype(), other.dtype(), e.getKey());
      assertArrayEquals(e.getValue().shape(), other.shape(), e.getKey());
      assertEquals(-1, e.getValue().segment().mismatch(other.segment()), e.getKey());
    }
  }

  private void assertConfigRefused(String golden, String from, String to, String... parts) throws IOException {
    Path changed = Files.createTempDirectory(folder, "changed");
    Goldens.withConfig(changed, golden, text -> text.replace(from, to));
    assertRefused(() -> Checkpoint.open(changed), parts);
    assertRefused(() -> Checkpoint.open(changed), "config.json");
  }

  private void assertTensorsRefused(String golden, Goldens.Edit edit, String... parts) throws IOException {
    Path changed = Files.createTempDirectory(folder, "changed");
    Goldens.withTensors(changed, golden, edit);
    assertRefused(() -> Checkpoint.open(changed), parts);
    assertRefused(() -> Checkpoint.open(changed), "model.safetensors");
  }

  @Test
  void mamba1() throws IOException {
    try (var c = Checkpoint.open(Goldens.folder("mamba1-untied-bias"))) {
      assertEquals(
          new ModelConfig(
              Family.MAMBA1, 3, 256, 48, 96, 8, 4, 6, 0, 0, 0, 0, 1e-5f, 0, 0, 0, false, true, true, new int[] {0}),
          c.config());
      LayerWeights w = c.layers().get(2);
      assertEquals(3, c.layers().size());
      assertArrayEquals(new long[] {192, 48}, w.inProj().shape());
      assertArrayEquals(new long[] {192}, w.inProjBias().shape());
      assertArrayEquals(new long[] {96, 4}, w.convWeight().shape());
      assertArrayEquals(new long[] {22, 96}, w.xProj().shape());
      assertArrayEquals(new long[] {96, 6}, w.dtProj().shape());
      assertArrayEquals(new long[] {96}, w.dtBias().shape());
      assertArrayEquals(new long[] {96, 8}, w.aLog().shape());
      assertArrayEquals(new long[] {48}, w.outProjBias().shape());
      assertNull(w.mixerNorm());
      assertArrayEquals(new long[] {256, 48}, c.lmHead().shape());
      assertEquals(1, c.files().size());
    }
  }

  @Test
  void mamba2() throws IOException {
    try (var c = Checkpoint.open(Goldens.folder("mamba2-g2"))) {
      ModelConfig m = c.config();
      assertEquals(
          new ModelConfig(
              Family.MAMBA2, 3, 256, 64, 128, 16, 4, 0, 8, 16, 2, 8, 1e-5f, 0, 0, Float.POSITIVE_INFINITY, false, false,
              true, new int[] {2}),
          m);
      assertEquals(192, m.convChannels());
      assertArrayEquals(new long[] {3, 192, 3}, m.convStateShape());
      assertArrayEquals(new long[] {3, 8, 16, 16}, m.ssmStateShape());
      LayerWeights w = c.layers().getFirst();
      assertArrayEquals(new long[] {8}, w.dtBias().shape());
      assertArrayEquals(new long[] {128}, w.mixerNorm().shape());
      assertNull(w.xProj());
      assertNull(w.dtProj());
      assertNull(w.inProjBias());
      assertArrayEquals(new long[] {64}, c.normF().shape());
    }
  }

  @Test
  void falconMamba() throws IOException {
    try (var c = Checkpoint.open(Goldens.folder("falcon-mamba"))) {
      assertEquals(Family.FALCON_MAMBA, c.config().family());
      assertEquals(1e-6f, c.config().mixerNormEps());
      assertEquals(4, c.config().dtRank());
    }
    Goldens.withConfig(folder, "falcon-mamba", text -> text.replace("\"expand\": 2", "\"expand\": 16"));
    try (var c = Checkpoint.open(folder)) {
      assertEquals(128, c.config().dInner(), "expand means nothing here");
    }
  }

  @ParameterizedTest
  @CsvSource({"mamba2-g1-f16,F16", "mamba1-tied-bf16,BF16", "mamba1-tied,F32"})
  void storedTypesAreKeptAndMapped(String golden, DType dtype) throws IOException {
    try (var c = Checkpoint.open(Goldens.folder(golden))) {
      assertEquals(dtype, c.embedding().dtype());
      assertTrue(c.embedding().segment().isReadOnly(), "in place");
      assertTrue(c.config().tiedHead());
      assertNull(c.lmHead());
    }
  }

  @ParameterizedTest
  @CsvSource({
    "mamba1-tied,mamba1-tied-original", "mamba2-g1,mamba2-g1-original", "mamba2-g1,mamba2-g1-sharded"
  })
  void otherLayoutsHaveTheSameTensors(String plain, String other) throws IOException {
    try (var a = Checkpoint.open(Goldens.folder(plain));
        var b = Checkpoint.open(Goldens.folder(other))) {
      assertSameTensors(a, b);
      ModelConfig c = b.config();
      assertEquals(
          a.config(),
          new ModelConfig(
              c.family(), c.layers(), c.vocabSize(), c.dModel(), c.dInner(), c.dState(), c.dConv(), c.dtRank(),
              c.nHeads(), c.headDim(), c.nGroups(), c.chunkSize(), c.normEps(), c.mixerNormEps(), c.dtMin(), c.dtMax(),
              c.tiedHead(), c.projBias(), c.convBias(), a.config().eosTokenIds()));
    }
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "mamba1-tied-original", "mamba2-g1-original", "mamba2-g1-sharded", "falcon-mamba", "mamba1-untied-bias"
      })
  void convertedCheckpointsAreTheSame(String golden) throws IOException {
    try (var before = Checkpoint.open(Goldens.folder(golden))) {
      TestData.writeModel(folder, before.hfTensors(), before);
      try (var after = Checkpoint.open(folder)) {
        assertSameTensors(before, after);
        assertEquals(before.config(), after.config());
      }
    }
  }

  @Test
  void bothSpellingsOfNames() throws IOException {
    Goldens.withTensors(
        folder,
        "mamba1-tied",
        (tensors, arena) -> {
          var renamed = new LinkedHashMap<String, Tensor>();
          tensors.forEach((name, t) -> renamed.put("model." + name.replace("embeddings", "embedding"), t));
          tensors.clear();
          tensors.putAll(renamed);
        });
    try (var a = Checkpoint.open(Goldens.folder("mamba1-tied"));
        var b = Checkpoint.open(folder)) {
      assertSameTensors(a, b);
    }
  }

  @Test
  void oneTensorUnderTwoSpellingsIsRefused() throws IOException {
    assertTensorsRefused(
        "mamba1-tied",
        (tensors, arena) -> tensors.put("backbone.embedding.weight", tensors.get("backbone.embeddings.weight")),
        "expected once", "backbone.embedding");
  }

  @Test
  void aHeadThatRepeatsTheEmbeddingIsTied() throws IOException {
    Goldens.withTensors(
        folder,
        "mamba1-tied",
        (tensors, arena) -> tensors.put("lm_head.weight", tensors.get("backbone.embeddings.weight")));
    try (var c = Checkpoint.open(folder)) {
      assertNull(c.lmHead());
      assertTrue(c.config().tiedHead());
    }
    assertTensorsRefused(
        "mamba1-tied",
        (tensors, arena) -> tensors.put("lm_head.weight", Tensor.allocate(arena, DType.F32, 272, 64)),
        "'lm_head.weight'", "tied", "another tensor");
  }

  @Test
  void withoutAWordAboutTyingTheTensorsDecide() throws IOException {
    UnaryOperator<String> silent = text -> text.replaceAll("\"tie_word_embeddings\": (true|false),", "");
    Path untied = Files.createDirectory(folder.resolve("untied"));
    try (var c = Checkpoint.open(Goldens.withConfig(untied, "mamba1-untied-bias", silent))) {
      assertEquals(256, c.lmHead().dim(0));
    }
    Path tied = Files.createDirectory(folder.resolve("tied"));
    try (var c = Checkpoint.open(Goldens.withConfig(tied, "mamba1-tied", silent))) {
      assertNull(c.lmHead());
    }
  }

  @Test
  void missingTensorsAreListed() throws IOException {
    assertTensorsRefused(
        "mamba2-g1",
        (tensors, arena) -> {
          tensors.remove(LAYER_1 + "D");
          tensors.remove("backbone.norm_f.weight");
        },
        "expected the 38 tensors", "found 36", "2 tensors missing", "'" + LAYER_1 + "D'", "'backbone.norm_f.weight'");
    assertTensorsRefused(
        "mamba1-tied",
        (tensors, arena) -> tensors.keySet().removeIf(name -> name.contains("mixer")),
        "36 tensors missing", "...");
    assertTensorsRefused(
        "mamba2-g1", (tensors, arena) -> tensors.remove(LAYER_1 + "conv1d.bias"), "1 tensor missing", "conv1d.bias");
    assertConfigRefused(
        "mamba1-tied", "\"use_bias\": false", "\"use_bias\": true", "8 tensors missing", "in_proj.bias", "config.json");
    assertConfigRefused(
        "mamba1-tied", "\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false", "missing: 'lm_head.weight'");
  }

  @Test
  void extraTensorsAreListed() throws IOException {
    assertTensorsRefused(
        "mamba2-g1",
        (tensors, arena) -> tensors.put(LAYER_1 + "secret", Tensor.allocate(arena, DType.F32, 1)),
        "1 tensor not expected: '" + LAYER_1 + "secret'");
    assertConfigRefused(
        "mamba1-untied-bias", "\"use_bias\": true", "\"use_bias\": false", "6 tensors not expected", "in_proj.bias");
    assertConfigRefused(
        "mamba2-g1", "\"use_conv_bias\": true", "\"use_conv_bias\": false", "4 tensors not expected", "conv1d.bias");
  }

  @Test
  void wrongShapes() throws IOException {
    assertTensorsRefused(
        "mamba2-g1",
        (tensors, arena) -> tensors.put(LAYER_1 + "D", Tensor.allocate(arena, DType.F32, 5)),
        "'" + LAYER_1 + "D'", "expected shape [4]", "found [5]");
    assertTensorsRefused(
        "mamba1-tied",
        (tensors, arena) -> tensors.computeIfPresent(LAYER_1 + "x_proj.weight", (name, t) -> t.transpose(0, 1)),
        "x_proj.weight'", "expected shape [36, 128]", "found [128, 36]");
    assertTensorsRefused(
        "mamba1-tied",
        (tensors, arena) -> tensors.put("backbone.embeddings.weight", Tensor.allocate(arena, DType.F32, 0, 64)),
        "embeddings.weight'", "2 dimensions of at least 1", "found [0, 64]");
    assertTensorsRefused(
        "mamba2-g1",
        (tensors, arena) -> tensors.put("backbone.layers.0.mixer.A_log", Tensor.allocate(arena, DType.F32, 3)),
        "A_log'", "divides d_inner 128", "found 3");
  }

  @ParameterizedTest
  @ValueSource(strings = {"F64", "I32", "U8"})
  void wrongDtypes(String dtype) throws IOException {
    assertTensorsRefused(
        "mamba2-g1",
        (tensors, arena) -> tensors.put(LAYER_1 + "A_log", Tensor.allocate(arena, DType.valueOf(dtype), 4)),
        "'" + LAYER_1 + "A_log'", "expected dtype F32, F16 or BF16", "found " + dtype);
  }

  @Test
  void mixedFloatTypesAreFine() throws IOException {
    Goldens.withTensors(
        folder,
        "mamba2-g1",
        (tensors, arena) -> {
          Tensor half = Tensor.allocate(arena, DType.F16, 4);
          half.copyFrom(tensors.get(LAYER_1 + "D"));
          tensors.put(LAYER_1 + "D", half);
        });
    try (var c = Checkpoint.open(folder)) {
      assertEquals(DType.F16, c.layers().get(1).d().dtype());
      assertEquals(DType.F32, c.layers().get(1).aLog().dtype());
    }
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "mamba2-g1|\"hidden_size\": 64|\"hidden_size\": 128|hidden_size 128 contradicts|64",
        "mamba2-g1|\"num_hidden_layers\": 4|\"num_hidden_layers\": 5|num_hidden_layers 5 contradicts|4 layers",
        "mamba2-g1|\"num_hidden_layers\": 4|\"num_hidden_layers\": 2147483648|num_hidden_layers|4 layers",
        "mamba2-g1|\"vocab_size\": 272|\"vocab_size\": 273|vocab_size 273 contradicts|272",
        "mamba2-g1|\"num_heads\": 4|\"num_heads\": 8|num_heads 8 contradicts|4",
        "mamba2-g1|\"head_dim\": 32|\"head_dim\": 16|head_dim 16 contradicts|32",
        "mamba2-g1|\"state_size\": 32|\"state_size\": 64|state_size 64 contradicts|32",
        "mamba2-g1|\"n_groups\": 1|\"n_groups\": 2|state_size 32 contradicts|16",
        "mamba2-g1|\"n_groups\": 1|\"n_groups\": 3|n_groups 3 must divide|4",
        "mamba2-g1|\"conv_kernel\": 4|\"conv_kernel\": 3|conv_kernel 3 contradicts|4",
        "mamba2-g1|\"expand\": 2|\"expand\": 3|expand 3.0 contradicts|128",
        "mamba1-tied|\"intermediate_size\": 128|\"intermediate_size\": 256|intermediate_size 256 contradicts|128",
        "mamba1-tied|\"time_step_rank\": 4|\"time_step_rank\": 8|time_step_rank 8 contradicts|4",
        "mamba1-tied|\"state_size\": 16|\"state_size\": 8|state_size 8 contradicts|16",
        "mamba1-tied-original|\"d_model\": 64|\"d_model\": 65|d_model 65 contradicts|64",
        "mamba1-tied-original|\"ssm_cfg\": {}|\"ssm_cfg\": {\"dt_rank\": 5}|ssm_cfg.dt_rank 5 contradicts|4",
        "mamba2-g1-original|\"headdim\": 32|\"headdim\": 64|ssm_cfg.headdim 64 contradicts|32",
        "falcon-mamba|\"intermediate_size\": 128|\"intermediate_size\": 64|intermediate_size 64 contradicts|128",
      })
  void configurationsThatContradictTheTensors(String golden, String from, String to, String said, String found)
      throws IOException {
    assertConfigRefused(golden, from, to, said, found);
  }

  @Test
  void paddedVocabulariesAreFine() throws IOException {
    Goldens.withConfig(folder, "mamba2-g1", text -> text.replace("\"vocab_size\": 272", "\"vocab_size\": 258"));
    try (var c = Checkpoint.open(folder)) {
      assertEquals(272, c.config().vocabSize());
    }
  }

  @Test
  void groupsFollowFromTheStateSize() throws IOException {
    Goldens.withConfig(folder, "mamba2-g2", text -> text.replace("\"n_groups\": 2,", ""));
    try (var c = Checkpoint.open(folder)) {
      assertEquals(2, c.config().nGroups());
    }
  }

  @Test
  void convChannelsMustBeMoreThanTheInnerOnes() throws IOException {
    for (long channels : new long[] {128, 64, 129}) {
      assertTensorsRefused(
          "mamba2-g1",
          (tensors, arena) ->
              tensors.put("backbone.layers.0.mixer.conv1d.weight", Tensor.allocate(arena, DType.F32, channels, 1, 4)),
          "conv1d.weight'", (channels - 128) + " channels beyond d_inner");
    }
  }

  @Test
  void shardsMustAgreeWithTheIndex() throws IOException {
    String index = "model.safetensors.index.json";
    String first = "model-00001-of-00002.safetensors";
    String second = "model-00002-of-00002.safetensors";
    TestData.copyGolden("mamba2-g1-sharded", folder);
    String json = Files.readString(folder.resolve(index));
    String entry = "\"backbone.layers.0.mixer.D\": \"" + first + "\"";
    assertTrue(json.contains(entry));

    Files.writeString(folder.resolve(index), json.replace(entry, entry.replace(first, second)));
    assertRefused(() -> Checkpoint.open(folder), first, "'backbone.layers.0.mixer.D'", "only in " + second);

    Files.writeString(folder.resolve(index), json.replace(entry + ",", ""));
    assertRefused(() -> Checkpoint.open(folder), first, "'backbone.layers.0.mixer.D'", "in the index");

    Files.writeString(folder.resolve(index), json.replace(entry, "\"ghost\": \"" + first + "\", " + entry));
    assertRefused(() -> Checkpoint.open(folder), index, "'ghost'", "in shard " + first);

    Files.writeString(folder.resolve(index), json.replace(first, "../" + first));
    assertRefused(() -> Checkpoint.open(folder), index, "a plain file name inside of the folder", "../");

    Files.writeString(folder.resolve(index), json);
    Files.delete(folder.resolve(second));
    assertRefused(() -> Checkpoint.open(folder), second, "no such file");
  }

  @Test
  void hubCachesLinkFilesFromElsewhere() throws IOException {
    Path blobs = Files.createDirectories(folder.resolve("blobs"));
    Path snapshot = Files.createDirectories(folder.resolve("snapshots/abc"));
    for (String name : new String[] {"config.json", "model.safetensors"}) {
      Files.copy(Goldens.folder("mamba1-tied").resolve(name), blobs.resolve("blob-" + name));
      Files.createSymbolicLink(snapshot.resolve(name), Path.of("../../blobs/blob-" + name));
    }
    try (var c = Checkpoint.open(snapshot)) {
      assertEquals(4, c.config().layers());
    }
  }

  @Test
  void misalignedWeightsAreCopied() throws IOException {
    Files.copy(Goldens.folder("mamba1-tied").resolve("config.json"), folder.resolve("config.json"));
    byte[] golden = Files.readAllBytes(Goldens.folder("mamba1-tied").resolve("model.safetensors"));
    var shifted = ByteBuffer.allocate(golden.length + 1).order(ByteOrder.LITTLE_ENDIAN);
    int header = (int) ByteBuffer.wrap(golden).order(ByteOrder.LITTLE_ENDIAN).getLong();
    shifted.putLong(header + 1).put(golden, 8, header).put((byte) ' ');
    shifted.put(golden, 8 + header, golden.length - 8 - header);
    Files.write(folder.resolve("model.safetensors"), shifted.array());
    try (var a = Checkpoint.open(Goldens.folder("mamba1-tied"));
        var b = Checkpoint.open(folder)) {
      assertSameTensors(a, b);
      assertTrue(b.hfTensors().values().stream().allMatch(Tensor::isAligned));
    }
  }

  @Test
  void foldersWithoutAModel() throws IOException {
    assertRefused(() -> Checkpoint.open(folder), "config.json", "no such file");
    assertRefused(() -> Checkpoint.open(folder.resolve("absent")), "absent", "no such file");
    Files.createDirectory(folder.resolve("config.json"));
    assertRefused(() -> Checkpoint.open(folder), "config.json", "found a folder");
    Files.delete(folder.resolve("config.json"));
    Files.copy(Goldens.folder("mamba1-tied").resolve("config.json"), folder.resolve("config.json"));
    assertRefused(() -> Checkpoint.open(folder), "expected model.safetensors, pytorch_model.bin", "none");
    Files.createDirectory(folder.resolve("model.safetensors"));
    assertRefused(() -> Checkpoint.open(folder), "model.safetensors", "found a folder");
  }

  @Test
  void hybridsAreRefusedBeforeTheirTensorsAreRead() throws IOException {
    Files.writeString(folder.resolve("config.json"), "{\"model_type\":\"zamba2\"}");
    assertRefused(() -> Checkpoint.open(folder), "config.json", "Zamba2", "attention");
  }

  @Test
  void closingTwiceIsFineAndEndsTheTensors() throws IOException {
    var c = Checkpoint.open(Goldens.folder("mamba1-tied"));
    Tensor embedding = c.embedding();
    assertSame(embedding, c.hfTensors().get("backbone.embeddings.weight"));
    assertThrows(UnsupportedOperationException.class, () -> c.hfTensors().clear());
    c.close();
    c.close();
    assertThrows(IllegalStateException.class, () -> embedding.getFloat(0, 0));
  }
}

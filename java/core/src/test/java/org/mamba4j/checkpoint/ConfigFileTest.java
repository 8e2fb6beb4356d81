package org.mamba4j.checkpoint;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.mamba4j.checkpoint.Goldens.assertRefused;

import java.io.IOException;
import java.nio.file.Path;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.mamba4j.Family;

class ConfigFileTest {
  private static final Path FILE = Path.of("config.json");

  private static ConfigFile parse(String json) throws IOException {
    return ConfigFile.parse(FILE, Goldens.utf8(json));
  }

  private static ConfigFile mamba2(String more) throws IOException {
    return parse("{\"model_type\":\"mamba2\"," + more + "}");
  }

  private static ConfigFile original(String ssm, String more) throws IOException {
    return parse("{\"d_model\":8,\"n_layer\":2,\"vocab_size\":9,\"ssm_cfg\":{" + ssm + "}" + more + "}");
  }

  @Test
  void huggingFaceDefaults() throws IOException {
    ConfigFile c = parse("{\"model_type\":\"mamba2\",\"hidden_size\":64}");
    assertEquals(Family.MAMBA2, c.family());
    assertFalse(c.original());
    assertEquals(64, c.dModel().value());
    assertFalse(c.dState().isPresent());
    assertEquals(256, c.chunkSize());
    assertEquals(1e-5f, c.normEps());
    assertArrayEquals(new float[] {0, Float.POSITIVE_INFINITY}, c.dtLimit());
    assertEquals(Optional.empty(), c.tiedHead());
    assertEquals(0, c.eosTokenIds().length);
    assertEquals(1e-6f, parse("{\"model_type\":\"falcon_mamba\"}").mixerNormEps());
    assertEquals(2e-6f, parse("{\"model_type\":\"falcon_mamba\",\"mixer_rms_eps\":2e-6}").mixerNormEps());
    assertEquals(Family.MAMBA1, parse("{\"model_type\":\"mamba\"}").family());
  }

  @Test
  void stateSpacesDefaults() throws IOException {
    ConfigFile one = original("", "");
    assertEquals(Family.MAMBA1, one.family());
    assertTrue(one.original());
    assertEquals(2, one.layers().value());
    assertEquals(1e-5f, one.normEps());
    ConfigFile two =
        original("\"layer\":\"Mamba2\",\"ngroups\":4,\"dt_limit\":[0.01, Infinity]", ",\"tie_embeddings\":false");
    assertEquals(Family.MAMBA2, two.family());
    assertEquals(4, two.nGroups().value());
    assertEquals(256, two.chunkSize());
    assertEquals(Optional.of(false), two.tiedHead());
    assertArrayEquals(new float[] {0.01f, Float.POSITIVE_INFINITY}, two.dtLimit());
    assertEquals(1, original("\"layer\":\"Mamba2\"", "").defaultGroups());
    assertEquals(Family.MAMBA1, parse("{\"d_model\":8,\"n_layer\":2,\"ssm_cfg\":null}").family());
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "[0, Infinity]", "[0.0, {\"__float__\": \"Infinity\"}]", "[{\"__float__\":\"Infinity\"}, 1]", "[0,1e999]"
      })
  void infinityInAllSpellings(String limit) throws IOException {
    String json = "\"time_step_limit\":" + limit;
    if (limit.startsWith("[{")) {
      assertRefused(() -> mamba2(json), "time_step_limit", "0 <= low <= high");
    } else {
      assertArrayEquals(new float[] {0, Float.POSITIVE_INFINITY}, mamba2(json).dtLimit());
    }
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "[0]", "[0,1,2]", "1", "[NaN,1]", "[0,NaN]", "[1,0]", "[-1,1]", "[\"0\",\"1\"]", "[null,1]",
        "[0,{\"__float__\":\"x\"}]", "[0,{\"__float__\":1}]", "[0,{}]"
      })
  void limitsThatAreNone(String limit) {
    assertRefused(() -> mamba2("\"time_step_limit\":" + limit), "config.json", "time_step_limit", "expected", "found");
  }

  @Test
  void groupsInBothSpellings() throws IOException {
    assertEquals(8, mamba2("\"n_groups\":8").nGroups().value());
    assertEquals(8, mamba2("\"ngroups\":8").nGroups().value());
    assertEquals(8, mamba2("\"ngroups\":8,\"n_groups\":8").nGroups().value());
    assertRefused(() -> mamba2("\"ngroups\":8,\"n_groups\":1"), "ngroups", "expected 1 as in n_groups", "found 8");
  }

  @Test
  void endOfTextTokens() throws IOException {
    assertArrayEquals(new int[] {11}, mamba2("\"eos_token_id\":11").eosTokenIds());
    assertArrayEquals(new int[] {2, 5}, mamba2("\"eos_token_id\":[2,5]").eosTokenIds());
    assertArrayEquals(new int[0], mamba2("\"eos_token_id\":null").eosTokenIds());
    for (String bad : new String[] {"-1", "\"2\"", "[2.5]", "[null]", "{}", "99999999999"}) {
      assertRefused(() -> mamba2("\"eos_token_id\":" + bad), "config.json", "eos_token_id", "token ids");
    }
  }

  @Test
  void fieldsWithoutMeaningAreIgnored() throws IOException {
    assertEquals(Optional.empty(), parse("{\"model_type\":\"falcon_mamba\",\"expand\":16}").expand());
    assertEquals(Family.MAMBA2, mamba2("\"norm_before_gate\":true,\"time_step_rank\":256").family());
  }

  @ParameterizedTest
  @CsvSource({
    "jamba,Jamba,attention", "zamba,Zamba,attention", "zamba2,Zamba2,attention", "bamba,Bamba,attention",
    "granitemoehybrid,Granite 4,mixture-of-experts", "nemotron_h,Nemotron-H,attention", "falcon_h1,Falcon-H1,attention"
  })
  void hybridsAreRefusedByName(String type, String name, String lacking) {
    assertRefused(
        () -> parse("{\"model_type\":\"" + type + "\"}"), "config.json", type, name, "hybrid", lacking, "missing here");
  }

  @Test
  void otherModelsAreRefusedByName() {
    assertRefused(() -> parse("{\"model_type\":\"llama\"}"), "expected mamba, mamba2 or falcon_mamba", "'llama'");
    assertRefused(() -> parse("{\"model_type\":7}"), "model_type", "a string");
    assertRefused(() -> parse("{\"n_layer\":7}"), "model_type", "d_model and n_layer");
    assertRefused(() -> original("", ",\"attn_layer_idx\":[1,3]"), "attn_layer_idx", "mamba2attn", "attention");
    assertRefused(() -> original("", ",\"d_intermediate\":32"), "d_intermediate", "MLP");
    assertRefused(() -> original("", ",\"rms_norm\":false"), "rms_norm false", "LayerNorm");
    assertRefused(() -> mamba2("\"rms_norm\":false"), "rms_norm false", "LayerNorm");
    assertRefused(() -> mamba2("\"hidden_act\":\"gelu\""), "hidden_act", "expected silu", "'gelu'");
    assertRefused(() -> mamba2("\"quantization_config\":{\"bits\":4}"), "quantization_config");
    assertRefused(() -> original("\"layer\":\"Mamba3\"", ""), "ssm_cfg.layer", "Mamba1 or Mamba2", "'Mamba3'");
    assertRefused(() -> original("\"layer\":\"Mamba2\",\"rmsnorm\":false", ""), "ssm_cfg.rmsnorm");
    assertRefused(() -> original("\"layer\":\"Mamba2\",\"norm_before_gate\":true", ""), "norm_before_gate");
    assertRefused(() -> original("\"layer\":\"Mamba2\",\"d_ssm\":64", ""), "d_ssm");
  }

  @Test
  void unusedHybridFieldsAreFine() throws IOException {
    assertEquals(Family.MAMBA1, original("", ",\"attn_layer_idx\":[],\"d_intermediate\":0,\"attn_cfg\":{}").family());
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "0", "-1", "1.5", "\"64\"", "true", "[64]", "{}", "NaN", "Infinity", "1e99", "9223372036854775808"
      })
  void dimensionsAreIntegers(String value) {
    for (String key : new String[] {"hidden_size", "num_hidden_layers", "vocab_size", "head_dim", "chunk_size"}) {
      assertRefused(() -> mamba2("\"" + key + "\":" + value), "config.json", key, "an integer from 1", "found");
    }
  }

  @ParameterizedTest
  @ValueSource(strings = {"0", "-1e-5", "NaN", "Infinity", "1e-60", "\"x\"", "[]"})
  void epsilonsArePositive(String value) {
    assertRefused(() -> mamba2("\"layer_norm_epsilon\":" + value), "config.json", "layer_norm_epsilon");
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "", "[]", "nul", "{\"model_type\":\"mamba\"", "{\"model_type\":\"mamba\"}x", "{\"a\":1,\"a\":2}"
      })
  void textThatIsNoObject(String json) {
    assertRefused(() -> parse(json), "config.json", "the configuration");
  }

  @Test
  void chunksHaveALimit() {
    assertRefused(() -> mamba2("\"chunk_size\":4097"), "chunk_size", "1 to 4096", "4097");
  }
}

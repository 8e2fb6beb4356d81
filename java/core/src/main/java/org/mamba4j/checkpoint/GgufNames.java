package org.mamba4j.checkpoint;

import java.util.Map;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.mamba4j.Family;

/** What llama.cpp calls the tensors of a model. */
final class GgufNames {
  static final String A = "ssm_a";
  static final String D = "ssm_d";
  static final String CONV = "ssm_conv1d.weight";
  static final String MIXER_NORM = "ssm_norm.weight";

  private static final Pattern BLOCK = Pattern.compile("blk\\.(\\d{1,9})\\.(.*)", Pattern.DOTALL);
  private static final Pattern LAYER = Pattern.compile("backbone\\.layers\\.(\\d{1,9})\\.(.*)", Pattern.DOTALL);

  private static final Map<String, String> GLOBAL =
      Map.of(
          "token_embd.weight", WeightNames.EMBEDDING,
          "output_norm.weight", WeightNames.NORM_F,
          "output.weight", WeightNames.LM_HEAD);

  private final Map<String, String> inBlock; // GGUF to Hugging Face
  private final Map<String, String> fromBlock; // and back

  GgufNames(Family family) {
    String dtBias = family == Family.MAMBA2 ? WeightNames.DT_BIAS : WeightNames.DT_PROJ_BIAS;
    this.inBlock =
        Map.ofEntries(
            Map.entry("attn_norm.weight", WeightNames.NORM),
            Map.entry("ssm_in.weight", WeightNames.IN_PROJ),
            Map.entry(CONV, WeightNames.CONV),
            Map.entry("ssm_conv1d.bias", WeightNames.CONV_BIAS),
            Map.entry("ssm_x.weight", WeightNames.X_PROJ),
            Map.entry("ssm_dt.weight", WeightNames.DT_PROJ),
            Map.entry("ssm_dt.bias", dtBias),
            Map.entry(A, WeightNames.A_LOG),
            Map.entry(D, WeightNames.D),
            Map.entry(MIXER_NORM, WeightNames.MIXER_NORM),
            Map.entry("ssm_out.weight", WeightNames.OUT_PROJ));
    this.fromBlock = inBlock.entrySet().stream().collect(Collectors.toMap(Map.Entry::getValue, Map.Entry::getKey));
  }

  /** Hugging Face's name for llama.cpp's; what is unknown stays as it is. */
  String canonical(String name) {
    var block = BLOCK.matcher(name);
    if (block.matches()) {
      String known = inBlock.get(block.group(2));
      return known == null ? name : "backbone.layers." + block.group(1) + "." + known;
    }
    return GLOBAL.getOrDefault(name, name);
  }

  /** llama.cpp's name for Hugging Face's; what is unknown stays as it is. */
  String spelling(String canonical) {
    var layer = LAYER.matcher(canonical);
    if (layer.matches()) {
      String known = fromBlock.get(layer.group(2));
      return known == null ? canonical : "blk." + layer.group(1) + "." + known;
    }
    return GLOBAL.entrySet().stream()
        .filter(e -> e.getValue().equals(canonical))
        .map(Map.Entry::getKey)
        .findFirst()
        .orElse(canonical);
  }

  /** Whether a tensor of llama.cpp is this one of a block. */
  static boolean inBlockIs(String name, String suffix) {
    var block = BLOCK.matcher(name);
    return block.matches() && block.group(2).equals(suffix);
  }
}

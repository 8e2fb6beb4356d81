package org.mamba4j.checkpoint;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonGenerator;
import com.fasterxml.jackson.core.util.DefaultPrettyPrinter;
import java.io.IOException;
import java.io.StringWriter;
import java.io.UncheckedIOException;
import org.mamba4j.DType;
import org.mamba4j.Family;
import org.mamba4j.ModelConfig;

/** Writes the {@code config.json} that Hugging Face transformers reads. */
final class HuggingFaceConfig {
  private static final JsonFactory JSON = new JsonFactory();

  private HuggingFaceConfig() {}

  static String write(ModelConfig config, DType dtype) {
    boolean mamba2 = config.family() == Family.MAMBA2;
    var text = new StringWriter();
    try (JsonGenerator json = JSON.createGenerator(text)) {
      json.setPrettyPrinter(new DefaultPrettyPrinter());
      json.writeStartObject();
      json.writeFieldName("architectures");
      json.writeArray(new String[] {architecture(config.family())}, 0, 1);
      json.writeStringField("model_type", modelType(config.family()));
      json.writeStringField("dtype", dtypeName(dtype));
      json.writeNumberField("num_hidden_layers", config.layers());
      json.writeNumberField("vocab_size", config.vocabSize());
      json.writeNumberField("hidden_size", config.dModel());
      json.writeNumberField("state_size", config.dState());
      json.writeNumberField("conv_kernel", config.dConv());
      writeExpand(json, config);
      if (mamba2) {
        json.writeNumberField("num_heads", config.nHeads());
        json.writeNumberField("head_dim", config.headDim());
        json.writeNumberField("n_groups", config.nGroups());
        json.writeNumberField("chunk_size", config.chunkSize());
        json.writeArrayFieldStart("time_step_limit");
        json.writeNumber(config.dtMin());
        writeLimit(json, config.dtMax());
        json.writeEndArray();
        json.writeBooleanField("rms_norm", true);
      } else {
        json.writeNumberField("intermediate_size", config.dInner());
        json.writeNumberField("time_step_rank", config.dtRank());
      }
      if (config.family() == Family.FALCON_MAMBA) {
        json.writeNumberField("mixer_rms_eps", config.mixerNormEps());
      }
      json.writeNumberField("layer_norm_epsilon", config.normEps());
      json.writeStringField("hidden_act", "silu");
      json.writeBooleanField("use_bias", config.projBias());
      json.writeBooleanField("use_conv_bias", config.convBias());
      json.writeBooleanField("tie_word_embeddings", config.tiedHead());
      json.writeBooleanField("residual_in_fp32", true);
      writeEos(json, config.eosTokenIds());
      json.writeEndObject();
    } catch (IOException e) {
      throw new UncheckedIOException(e); // a StringWriter has none
    }
    return text.append('\n').toString();
  }

  private static void writeExpand(JsonGenerator json, ModelConfig config) throws IOException {
    if (config.dInner() % config.dModel() == 0) {
      json.writeNumberField("expand", config.dInner() / config.dModel());
    } else {
      json.writeNumberField("expand", (double) config.dInner() / config.dModel());
    }
  }

  private static void writeLimit(JsonGenerator json, float limit) throws IOException {
    if (Float.isInfinite(limit)) {
      json.writeStartObject(); // JSON has no Infinity
      json.writeStringField("__float__", "Infinity");
      json.writeEndObject();
    } else {
      json.writeNumber(limit);
    }
  }

  private static void writeEos(JsonGenerator json, int[] ids) throws IOException {
    if (ids.length == 1) {
      json.writeNumberField("eos_token_id", ids[0]);
    } else if (ids.length > 1) {
      json.writeFieldName("eos_token_id");
      json.writeArray(ids, 0, ids.length);
    }
  }

  private static String modelType(Family family) {
    return switch (family) {
      case MAMBA1 -> "mamba";
      case FALCON_MAMBA -> "falcon_mamba";
      case MAMBA2 -> "mamba2";
    };
  }

  private static String architecture(Family family) {
    return switch (family) {
      case MAMBA1 -> "MambaForCausalLM";
      case FALCON_MAMBA -> "FalconMambaForCausalLM";
      case MAMBA2 -> "Mamba2ForCausalLM";
    };
  }

  private static String dtypeName(DType dtype) {
    return switch (dtype) {
      case F16 -> "float16";
      case BF16 -> "bfloat16";
      default -> "float32";
    };
  }
}

package org.mamba4j.cli;

import com.fasterxml.jackson.jr.ob.JSON;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import org.mamba4j.DType;
import org.mamba4j.Tensor;
import org.mamba4j.WeightType;
import org.mamba4j.checkpoint.Checkpoint;
import org.mamba4j.checkpoint.SafetensorsWriter;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;

@Command(
    name = "convert",
    description = {
      "Writes a model as one model.safetensors with a Hugging Face config.json and the tokenizer's files.",
      "Reads every layout that the other commands read: pytorch_model.bin, shards, the state-spaces config."
    },
    footer = {
      "",
      "Without --weights the weights keep their values and types; only names and layout change. With f32, f16 or bf16",
      "the matrices are written in that type, as the other commands would hold them in memory. Safetensors has no blocks",
      "with shared scales, so int8 and int4 are not written: the other commands quantise in a moment while loading.",
      "",
      "Examples:",
      "  mamba4j convert --model state-spaces/mamba-130m --out mamba-130m",
      "  mamba4j convert --model checkpoints/sharded --out checkpoints/single --force",
      "  mamba4j convert --model checkpoints/float32 --weights bf16 --out checkpoints/bfloat16"
    })
final class ConvertCommand extends CliCommand {
  private static final String WEIGHTS = "model.safetensors";
  private static final String CONFIG = "config.json";
  private static final List<String> COMPANIONS =
      List.of(
          "tokenizer.json",
          "tokenizer_config.json",
          "tokenizer.model",
          "special_tokens_map.json",
          "added_tokens.json",
          "vocab.json",
          "merges.txt",
          "generation_config.json");

  @Mixin ModelOption model;

  @Option(names = "--out", required = true, paramLabel = "DIR", description = "Folder to write to; made if missing.")
  Path out;

  @Option(names = "--force", description = "Replace files that exist already.", defaultValue = "false")
  boolean force;

  @Override
  public Integer call() throws IOException {
    if (model.weights == WeightType.INT8 || model.weights == WeightType.INT4) {
      throw new ParameterException(
          spec.commandLine(),
          "--weights %s: safetensors files have no such type; give the option to the command that loads the model"
              .formatted(model.weights.name().toLowerCase(Locale.ROOT)));
    }
    Path folder = model.folder();
    Files.createDirectories(out);
    if (Files.isSameFile(folder, out)) {
      throw new IOException("--out is the model's own folder, " + folder);
    }
    List<String> companions = COMPANIONS.stream().filter(name -> Files.isRegularFile(folder.resolve(name))).toList();
    if (!force) {
      refuseToReplace(WEIGHTS);
      refuseToReplace(CONFIG);
      for (String name : companions) {
        refuseToReplace(name);
      }
    }
    int count;
    try (Checkpoint checkpoint = Checkpoint.open(folder);
        Arena converted = Arena.ofShared()) {
      Map<String, Tensor> tensors = new LinkedHashMap<>(checkpoint.hfTensors());
      tensors.replaceAll((name, tensor) -> inType(name, tensor, converted));
      count = tensors.size();
      SafetensorsWriter.write(out.resolve(WEIGHTS), tensors, Map.of("format", "pt"));
      Files.writeString(out.resolve(CONFIG), configJson(checkpoint));
    }
    for (String name : companions) {
      Files.copy(folder.resolve(name), out.resolve(name), StandardCopyOption.REPLACE_EXISTING);
    }
    out().printf(
        "%s: %d tensors, %s%n", out.resolve(WEIGHTS), count, Text.bytes(Files.size(out.resolve(WEIGHTS))));
    return 0;
  }

  private Tensor inType(String name, Tensor tensor, Arena arena) {
    DType type = model.weights.of(name, tensor);
    try {
      return type == tensor.dtype() ? tensor : tensor.convertTo(arena, type);
    } catch (IllegalArgumentException e) {
      throw new IllegalArgumentException(name + ": " + e.getMessage(), e);
    }
  }

  /** Names the type of the matrices, which transformers loads a model in. */
  private String configJson(Checkpoint checkpoint) throws IOException {
    String json = checkpoint.hfConfigJson();
    String type =
        switch (model.weights) {
          case F32 -> "float32";
          case F16 -> "float16";
          case BF16 -> "bfloat16";
          case STORED, INT8, INT4 -> null;
        };
    if (type == null) {
      return json;
    }
    Map<String, Object> config = JSON.std.mapFrom(json);
    config.put(config.containsKey("dtype") ? "dtype" : "torch_dtype", type);
    return JSON.std.with(JSON.Feature.PRETTY_PRINT_OUTPUT, JSON.Feature.WRITE_NULL_PROPERTIES).asString(config) + "\n";
  }

  private void refuseToReplace(String name) throws IOException {
    if (Files.exists(out.resolve(name))) {
      throw new IOException(out.resolve(name) + " exists already; --force replaces it");
    }
  }
}

package org.mamba4j.cli;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.List;
import java.util.Map;
import org.mamba4j.Tensor;
import org.mamba4j.checkpoint.Checkpoint;
import org.mamba4j.checkpoint.SafetensorsWriter;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

@Command(
    name = "convert",
    description = {
      "Writes a model as one model.safetensors with a Hugging Face config.json and the tokenizer's files.",
      "Reads every layout that the other commands read: pytorch_model.bin, shards, the state-spaces config."
    },
    footer = {
      "",
      "Weights keep their values and types; only names and layout change.",
      "",
      "Examples:",
      "  mamba4j convert --model state-spaces/mamba-130m --out mamba-130m",
      "  mamba4j convert --model checkpoints/sharded --out checkpoints/single --force"
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
    try (Checkpoint checkpoint = Checkpoint.open(folder)) {
      Map<String, Tensor> tensors = checkpoint.hfTensors();
      count = tensors.size();
      SafetensorsWriter.write(out.resolve(WEIGHTS), tensors, Map.of("format", "pt"));
      Files.writeString(out.resolve(CONFIG), checkpoint.hfConfigJson());
    }
    for (String name : companions) {
      Files.copy(folder.resolve(name), out.resolve(name), StandardCopyOption.REPLACE_EXISTING);
    }
    out().printf(
        "%s: %d tensors, %s%n", out.resolve(WEIGHTS), count, Text.bytes(Files.size(out.resolve(WEIGHTS))));
    return 0;
  }

  private void refuseToReplace(String name) throws IOException {
    if (Files.exists(out.resolve(name))) {
      throw new IOException(out.resolve(name) + " exists already; --force replaces it");
    }
  }
}

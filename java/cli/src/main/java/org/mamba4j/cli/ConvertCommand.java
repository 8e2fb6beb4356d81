package org.mamba4j.cli;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.json.JsonReadFeature;
import com.fasterxml.jackson.core.json.JsonWriteFeature;
import com.fasterxml.jackson.jr.ob.JSON;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.Predicate;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.mamba4j.DType;
import org.mamba4j.Engine;
import org.mamba4j.Tensor;
import org.mamba4j.WeightType;
import org.mamba4j.checkpoint.Checkpoint;
import org.mamba4j.checkpoint.GgufModelWriter;
import org.mamba4j.checkpoint.SafetensorsWriter;
import org.mamba4j.text.Tokenizer;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

@Command(
    name = "convert",
    description = {
      "Writes a model into a folder of its own: one model.safetensors with a Hugging Face config.json, or a quantised",
      "model.gguf, and the tokenizer's files. Reads every layout that the other commands read: pytorch_model.bin, shards,",
      "the state-spaces config, GGUF."
    },
    footer = {
      "",
      "Without --weights the weights keep their values and types; only names and layout change. With f32, f16 or bf16",
      "the matrices are written in that type, as the other commands would hold them in memory. With int8 or int4 they are",
      "quantised as Q8_0 or Q4_0 in a GGUF file with the names of llama.cpp, which gives the results that --weights int8 or",
      "int4 gives while loading, and needs no quantising then.",
      "",
      "Examples:",
      "  mamba4j convert --model state-spaces/mamba-130m --out mamba-130m",
      "  mamba4j convert --model checkpoints/sharded --out checkpoints/single --force",
      "  mamba4j convert --model checkpoints/float32 --weights bf16 --out checkpoints/bfloat16",
      "  mamba4j convert --model state-spaces/mamba-130m-hf --weights int8 --out mamba-130m-int8"
    })
final class ConvertCommand extends CliCommand {
  private static final String SAFETENSORS = "model.safetensors";
  private static final String GGUF = "model.gguf";
  private static final String CONFIG = "config.json";
  private static final String TOKENIZER = "tokenizer.json";
  // Python writes infinities bare, and reads them so.
  private static final JSON PYTHON_JSON =
      new JSON(
              JsonFactory.builder()
                  .enable(JsonReadFeature.ALLOW_NON_NUMERIC_NUMBERS)
                  .disable(JsonWriteFeature.WRITE_NAN_AS_STRINGS)
                  .build())
          .with(JSON.Feature.PRETTY_PRINT_OUTPUT, JSON.Feature.WRITE_NULL_PROPERTIES);
  private static final List<String> COMPANIONS =
      List.of(
          TOKENIZER,
          "tokenizer_config.json",
          "tokenizer.model",
          "special_tokens_map.json",
          "added_tokens.json",
          "vocab.json",
          "merges.txt",
          "generation_config.json");
  /** What would be loaded instead of a GGUF file beside it, or be one too many. */
  private static final Pattern OTHER_MODEL =
      Pattern.compile("(model\\.safetensors|pytorch_model\\.bin)(\\.index\\.json)?|.*\\.gguf");

  @Mixin ModelOption model;

  @Option(names = "--out", required = true, paramLabel = "DIR", description = "Folder to write to; made if missing.")
  Path out;

  @Option(
      names = "--force",
      description = "Replace the files of a model that exist already, and remove what the new one does not have.",
      defaultValue = "false")
  boolean force;

  @Override
  public Integer call() throws IOException {
    Path source = model.folder();
    Path folder = Files.isRegularFile(source) ? source.toAbsolutePath().getParent() : source;
    boolean quantised = model.weights == WeightType.INT8 || model.weights == WeightType.INT4;
    Files.createDirectories(out);
    if (Files.isSameFile(folder, out)) {
      throw new IOException("--out is the model's own folder, " + folder);
    }
    Optional<byte[]> vocabulary =
        Files.isRegularFile(folder.resolve(TOKENIZER)) ? Optional.empty() : Tokenizer.jsonOfGguf(source);
    checkPlace(quantised);
    Path written = out.resolve(quantised ? GGUF : SAFETENSORS);
    int count;
    try (Checkpoint checkpoint = Checkpoint.open(source);
        Interrupt interrupt = new Interrupt(Thread.currentThread()::interrupt)) {
      count = checkpoint.hfTensors().size();
      if (quantised) {
        writeGguf(written, source, checkpoint);
      } else {
        writeSafetensors(written, checkpoint);
      }
    }
    for (String name : COMPANIONS) {
      if (Files.isRegularFile(folder.resolve(name))) {
        Files.copy(folder.resolve(name), out.resolve(name), StandardCopyOption.REPLACE_EXISTING);
      } else {
        Files.deleteIfExists(out.resolve(name)); // another model's
      }
    }
    if (vocabulary.isPresent()) {
      Files.write(out.resolve(TOKENIZER), vocabulary.get());
    }
    out().printf("%s: %d tensors, %s%n", written, count, Text.bytes(Files.size(written)));
    return 0;
  }

  private void checkPlace(boolean quantised) throws IOException {
    if (quantised) {
      refuseOtherModels();
    }
    if (force) {
      return;
    }
    var names = new ArrayList<>(quantised ? List.of(GGUF) : List.of(SAFETENSORS, CONFIG));
    names.addAll(COMPANIONS);
    for (String name : names) {
      if (Files.exists(out.resolve(name))) {
        throw new IOException(out.resolve(name) + " exists already; --force replaces it");
      }
    }
  }

  private void refuseOtherModels() throws IOException {
    try (Stream<Path> files = Files.list(out)) {
      Predicate<String> other = OTHER_MODEL.asMatchPredicate();
      var found =
          files.map(file -> file.getFileName().toString()).filter(n -> !n.equals(GGUF) && other.test(n)).findFirst();
      if (found.isPresent()) {
        throw new IOException(
            "%s holds %s, which does not go together with %s; name another folder".formatted(out, found.get(), GGUF));
      }
    }
  }

  private void writeGguf(Path path, Path source, Checkpoint checkpoint) throws IOException {
    String name = source.toAbsolutePath().normalize().getFileName().toString();
    try (Engine engine = Engine.create()) {
      GgufModelWriter.write(path, name, checkpoint, model.weights, engine, model.progress());
    }
  }

  private void writeSafetensors(Path path, Checkpoint checkpoint) throws IOException {
    String config = configJson(checkpoint);
    try (Arena converted = Arena.ofShared()) {
      Map<String, Tensor> tensors = new LinkedHashMap<>(checkpoint.hfTensors());
      tensors.replaceAll((name, tensor) -> inType(name, tensor, converted));
      SafetensorsWriter.write(path, tensors, Map.of("format", "pt"));
      Files.writeString(out.resolve(CONFIG), config);
    }
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
    Map<String, Object> config = PYTHON_JSON.mapFrom(json);
    config.put(config.containsKey("dtype") ? "dtype" : "torch_dtype", type);
    return PYTHON_JSON.asString(config) + "\n";
  }
}

package org.mamba4j.cli;

import java.io.IOException;
import java.util.LinkedHashMap;
import java.util.Locale;
import java.util.Map;
import java.util.TreeSet;
import org.mamba4j.Engine;
import org.mamba4j.Model;
import org.mamba4j.ModelConfig;
import org.mamba4j.WeightType;
import org.mamba4j.checkpoint.Checkpoint;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

@Command(
    name = "inspect",
    description = "Shows what a model is: family, dimensions, parameters, bytes of state a sequence.",
    footer = {
      "",
      "The state of a sequence has the same size however long the sequence is.",
      "",
      "Examples:",
      "  mamba4j inspect --model tests/models/mamba2-java-9m",
      "  mamba4j inspect --model tests/models/mamba2-java-9m --weights int8 --json"
    })
final class InspectCommand extends CliCommand {
  @Mixin LoadOptions model;
  @Mixin DeviceOptions device;

  @Option(names = "--json", description = "Print one JSON object.", defaultValue = "false")
  boolean json;

  @Override
  public Integer call() throws IOException {
    Map<String, Object> facts = new LinkedHashMap<>();
    try (Engine engine = Engine.create(device.engineOptions());
        Model loaded = model.load(engine)) {
      ModelConfig config = loaded.config();
      facts.put("family", config.family().name().toLowerCase(Locale.ROOT).replace('_', '-'));
      addDimensions(config, facts);
      facts.put("parameters", loaded.parameterCount());
      facts.put("weight_bytes", loaded.weightBytes());
      facts.put("weight_dtype", dtypes(loaded, model.weights));
      facts.put("state_bytes", loaded.stateBytes());
      facts.put("device", engine.device().toString());
      facts.put("device_name", engine.deviceName());
      if (engine.device().isCuda()) {
        facts.put("device_bytes", engine.deviceBytes());
      }
      facts.put("simd_target", engine.simdTarget());
      facts.put("threads", engine.threads());
    }
    if (json) {
      Json.print(out(), facts);
    } else {
      facts.forEach((name, value) -> out().printf("%-16s %s%n", name, display(name, value)));
    }
    return 0;
  }

  private static void addDimensions(ModelConfig config, Map<String, Object> facts) {
    facts.put("n_layer", config.layers());
    facts.put("vocab_size", config.vocabSize());
    facts.put("d_model", config.dModel());
    facts.put("d_inner", config.dInner());
    facts.put("d_state", config.dState());
    facts.put("d_conv", config.dConv());
    switch (config.family()) {
      case MAMBA1, FALCON_MAMBA -> facts.put("dt_rank", config.dtRank());
      case MAMBA2 -> {
        facts.put("nheads", config.nHeads());
        facts.put("headdim", config.headDim());
        facts.put("n_groups", config.nGroups());
        facts.put("chunk_size", config.chunkSize());
      }
    }
    facts.put("tied_head", config.tiedHead());
  }

  /** Such as {@code bf16}, or {@code bf16, f32} where they are mixed. */
  private static String dtypes(Model model, WeightType weights) throws IOException {
    TreeSet<String> names = new TreeSet<>();
    try (Checkpoint checkpoint = Checkpoint.open(model.folder())) {
      checkpoint
          .hfTensors()
          .forEach((name, tensor) -> names.add(weights.of(name, tensor).name().toLowerCase(Locale.ROOT)));
    }
    return String.join(", ", names);
  }

  private static String display(String name, Object value) {
    if (name.endsWith("_bytes")) {
      return Text.bytes((Long) value);
    }
    return value instanceof Long number ? Text.count(number) : value.toString();
  }
}

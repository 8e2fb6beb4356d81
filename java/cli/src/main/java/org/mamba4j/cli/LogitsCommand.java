package org.mamba4j.cli;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.mamba4j.Batch;
import org.mamba4j.DType;
import org.mamba4j.Engine;
import org.mamba4j.Model;
import org.mamba4j.Session;
import org.mamba4j.Tensor;
import org.mamba4j.checkpoint.SafetensorsWriter;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;

@Command(
    name = "logits",
    description = {
      "Feeds token ids to a model and writes its logits and states, for comparison with other implementations.",
      "All sequences travel together, as one ragged batch."
    },
    footer = {
      "",
      "Written for sequence I, counted from 0, as float32:",
      "  logits.I       [length, vocabulary]",
      "  conv_states.I  [layers, channels, width - 1]",
      "  ssm_states.I   [layers, channels, state], in Mamba-2 [layers, heads, headdim, state]",
      "",
      "Examples:",
      "  mamba4j logits --model tests/goldens/mamba1-tied --ids '1,2,3;4,5' --out logits.safetensors",
      "  mamba4j logits --model tests/goldens/mamba1-tied --ids '1,2,3,4,5' --split 2,1 --out logits.safetensors"
    })
final class LogitsCommand extends CliCommand {
  @Mixin LoadOptions model;

  @Option(
      names = "--ids",
      required = true,
      paramLabel = "IDS",
      converter = TokenIds.Sequences.Converter.class,
      description = "Token ids: commas between those of a sequence, semicolons between sequences.")
  TokenIds.Sequences ids;

  @Option(names = "--out", required = true, paramLabel = "FILE", description = "Safetensors file to write.")
  Path out;

  @Option(
      names = "--split",
      paramLabel = "SIZES",
      converter = TokenIds.Converter.class,
      description =
          "Feed each sequence in several calls: 2,1 feeds two tokens, then one, then the rest. A sequence that ends"
              + " earlier leaves the batch. Whatever the split, the result is the same.")
  TokenIds split = new TokenIds();

  @Mixin DeviceOptions device;

  @Override
  public Integer call() throws IOException {
    for (int size : split.values()) {
      if (size < 1) {
        throw new ParameterException(spec.commandLine(), "--split: sizes must be positive, found " + size);
      }
    }
    try (Engine engine = Engine.create(device.engineOptions());
        Model loaded = model.load(engine);
        Arena arena = Arena.ofShared()) {
      List<Session> sessions = new ArrayList<>();
      List<Tensor> logits = new ArrayList<>(); // [length, vocabulary] each
      try {
        for (int[] sequence : ids.values()) {
          sessions.add(loaded.newSession());
          logits.add(Tensor.allocate(arena, DType.F32, sequence.length, loaded.config().vocabSize()));
        }
        advance(loaded, sessions, logits);
        write(sessions, logits);
      } finally {
        sessions.forEach(Session::close);
      }
    }
    return 0;
  }

  private void advance(Model loaded, List<Session> sessions, List<Tensor> logits) {
    int[][] sequences = ids.values();
    int[] sizes = split.values();
    int longest = Arrays.stream(sequences).mapToInt(sequence -> sequence.length).max().orElseThrow();
    try (Batch batch = loaded.newBatch(sequences.length)) {
      int from = 0;
      for (int call = 0; from < longest; call++) {
        int to = call < sizes.length ? (int) Math.min(longest, (long) from + sizes[call]) : longest;
        List<Tensor> targets = new ArrayList<>();
        batch.clear();
        for (int i = 0; i < sequences.length; i++) {
          int end = Math.min(to, sequences[i].length);
          if (from < end) {
            batch.add(sessions.get(i), Arrays.copyOfRange(sequences[i], from, end));
            targets.add(logits.get(i).slice(0, from, end));
          }
        }
        batch.advanceAll();
        for (int i = 0; i < targets.size(); i++) {
          targets.get(i).copyFrom(batch.logits(i));
        }
        from = to;
      }
    }
  }

  private void write(List<Session> sessions, List<Tensor> logits) throws IOException {
    Map<String, Tensor> tensors = new LinkedHashMap<>();
    for (int i = 0; i < sessions.size(); i++) {
      tensors.put("logits." + i, logits.get(i));
      tensors.put("conv_states." + i, sessions.get(i).convState());
      tensors.put("ssm_states." + i, sessions.get(i).ssmState());
    }
    SafetensorsWriter.write(out, tensors, Map.of());
  }
}

package org.mamba4j.cli;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import org.mamba4j.DType;
import org.mamba4j.Engine;
import org.mamba4j.Ops;
import org.mamba4j.SelectiveScanArgs;
import org.mamba4j.SsdArgs;
import org.mamba4j.Tensor;
import org.mamba4j.checkpoint.CheckpointException;
import org.mamba4j.checkpoint.SafetensorsFile;
import org.mamba4j.checkpoint.SafetensorsWriter;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

@Command(
    name = "op",
    description = "Runs one operation on tensors from a file, for comparison with other implementations.",
    subcommands = {OpCommand.SelectiveScan.class, OpCommand.Ssd.class},
    footer = {
      "",
      "Examples:",
      "  mamba4j op selective-scan tests/goldens/op-scan-small.safetensors out.safetensors",
      "  mamba4j op ssd tests/goldens/op-ssd-small.safetensors out.safetensors"
    })
final class OpCommand extends CliCommand {
  @Override
  public Integer call() {
    err().println("mamba4j: op needs the name of an operation: selective-scan or ssd");
    err().println("Try: mamba4j op --help");
    return CommandLine.ExitCode.USAGE;
  }

  /** Input and output files, which all operations have. */
  abstract static class Op extends CliCommand {
    @Parameters(index = "0", paramLabel = "IN", description = "Safetensors file with the inputs, float32.")
    Path in;

    @Parameters(index = "1", paramLabel = "OUT", description = "Safetensors file to write: out, last_state.")
    Path out;

    @Mixin DeviceOptions device;

    /** Runs the operation and returns {@code out}; the state after the last element goes to {@code lastState}. */
    abstract Tensor run(Engine engine, Inputs inputs, Tensor lastState) throws IOException;

    abstract long[] stateShape(Inputs inputs) throws IOException;

    @Override
    public Integer call() throws IOException {
      try (Engine engine = Engine.create(device.engineOptions());
          SafetensorsFile file = SafetensorsFile.open(in);
          Arena arena = Arena.ofShared()) {
        Inputs inputs = new Inputs(file, engine, arena);
        Tensor lastState = Tensor.allocate(arena, engine, DType.F32, stateShape(inputs));
        Map<String, Tensor> results = new LinkedHashMap<>();
        results.put("out", onHost(run(engine, inputs, lastState), engine, arena));
        results.put("last_state", onHost(lastState, engine, arena));
        SafetensorsWriter.write(out, results, Map.of());
      }
      return 0;
    }

    private static Tensor onHost(Tensor tensor, Engine engine, Arena arena) {
      return tensor.device().isCuda() ? tensor.toHost(engine, arena) : tensor;
    }
  }

  @Command(
      name = "selective-scan",
      description = "The recurrence of Mamba-1.",
      footer = {
        "",
        "Reads (B batch, E channels, L length, N state, G groups):",
        "  u, delta [B, E, L]   A [E, N]   B, C [B, G, N, L]",
        "  optional: D, delta_bias [E]   z [B, E, L]   initial_state [B, E, N]",
        "  metadata softplus=true: delta is softplus(delta + delta_bias)",
        "Writes out [B, E, L] and last_state [B, E, N]."
      })
  static final class SelectiveScan extends Op {
    @Override
    long[] stateShape(Inputs inputs) throws IOException {
      Tensor u = inputs.stored("u", 3);
      return new long[] {u.dim(0), u.dim(1), inputs.stored("A", 2).dim(1)};
    }

    @Override
    Tensor run(Engine engine, Inputs inputs, Tensor lastState) throws IOException {
      return Ops.selectiveScan(
          engine,
          SelectiveScanArgs.of(
                  inputs.required("u", 3),
                  inputs.required("delta", 3),
                  inputs.required("A", 2),
                  inputs.required("B", 4),
                  inputs.required("C", 4))
              .withD(inputs.optional("D"))
              .withZ(inputs.optional("z"))
              .withDeltaBias(inputs.optional("delta_bias"))
              .withDeltaSoftplus(inputs.softplus())
              .withInitialState(inputs.optional("initial_state"))
              .withLastState(lastState));
    }
  }

  @Command(
      name = "ssd",
      description = "State space duality, the recurrence of Mamba-2, in its chunked matrix form.",
      footer = {
        "",
        "Reads (B batch, L length, H heads, P headdim, N state, G groups):",
        "  x [B, L, H, P]   dt [B, L, H]   A [H]   B, C [B, L, G, N]",
        "  optional: D, dt_bias [H]   initial_state [B, H, P, N]",
        "  metadata softplus=true: dt is softplus(dt + dt_bias)",
        "Writes out [B, L, H, P] and last_state [B, H, P, N]."
      })
  static final class Ssd extends Op {
    @Option(
        names = "--chunk-size",
        paramLabel = "N",
        defaultValue = "256",
        description = "Tokens per chunk; the result does not depend on it beyond rounding.")
    long chunkSize;

    @Override
    long[] stateShape(Inputs inputs) throws IOException {
      Tensor x = inputs.stored("x", 4);
      return new long[] {x.dim(0), x.dim(2), x.dim(3), inputs.stored("B", 4).dim(3)};
    }

    @Override
    Tensor run(Engine engine, Inputs inputs, Tensor lastState) throws IOException {
      return Ops.ssd(
          engine,
          SsdArgs.of(
                  inputs.required("x", 4),
                  inputs.required("dt", 3),
                  inputs.required("A", 1),
                  inputs.required("B", 4),
                  inputs.required("C", 4))
              .withD(inputs.optional("D"))
              .withDtBias(inputs.optional("dt_bias"))
              .withDtSoftplus(inputs.softplus())
              .withChunkSize(chunkSize)
              .withInitialState(inputs.optional("initial_state"))
              .withLastState(lastState));
    }
  }

  /** The tensors of a file by name, copied to the engine's device if that is a GPU. */
  record Inputs(SafetensorsFile file, Engine engine, Arena arena) {
    Tensor required(String name, int rank) throws CheckpointException {
      return onDevice(stored(name, rank));
    }

    /** As it lies in the file. */
    Tensor stored(String name, int rank) throws CheckpointException {
      Tensor tensor = file.tensor(name);
      if (tensor.rank() != rank) {
        throw new CheckpointException(
            "%s: %s: expected %d dimensions, found %d".formatted(file.path(), name, rank, tensor.rank()));
      }
      return tensor;
    }

    /** Null if it is not there. */
    Tensor optional(String name) throws CheckpointException {
      return file.names().contains(name) ? onDevice(file.tensor(name)) : null;
    }

    private Tensor onDevice(Tensor tensor) {
      return engine.device().isCuda() ? tensor.toDevice(engine, arena) : tensor;
    }

    boolean softplus() throws CheckpointException {
      String value = file.metadata().getOrDefault("softplus", "false");
      return switch (value) {
        case "true" -> true;
        case "false" -> false;
        default -> throw new CheckpointException(
            "%s: metadata softplus: expected true or false, found '%s'".formatted(file.path(), value));
      };
    }
  }
}

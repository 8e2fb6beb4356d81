package org.mamba4j.cli;

import org.mamba4j.Device;
import org.mamba4j.EngineOptions;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;
import picocli.CommandLine.Spec.Target;
import picocli.CommandLine.TypeConversionException;

/** Where to compute. */
final class DeviceOptions {
  @Spec(Target.MIXEE)
  CommandSpec command;

  @Option(
      names = "--device",
      paramLabel = "DEVICE",
      defaultValue = "cpu",
      converter = DeviceName.class,
      description = "Where to compute: cpu, or cuda:0, cuda:1, ... for an NVIDIA GPU.")
  Device device;

  private int threads;

  @Option(
      names = "--threads",
      paramLabel = "N",
      defaultValue = "0",
      description = "Threads of the engine; 0 takes as many as the processors or the container's quota allow.")
  void setThreads(int threads) {
    if (threads < 0) {
      throw new ParameterException(command.commandLine(), "--threads must not be negative, found " + threads);
    }
    this.threads = threads;
  }

  EngineOptions engineOptions() {
    return EngineOptions.defaults().withDevice(device).withThreads(threads);
  }

  static final class DeviceName implements ITypeConverter<Device> {
    @Override
    public Device convert(String name) {
      try {
        return Device.parse(name);
      } catch (IllegalArgumentException e) {
        throw new TypeConversionException(e.getMessage());
      }
    }
  }
}

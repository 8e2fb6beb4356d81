package org.mamba4j;

import java.util.Objects;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** Where an {@link Engine} computes. An immutable value. */
public final class Device {
  private static final Device CPU = new Device("cpu", -1);
  private static final Pattern CUDA = Pattern.compile("cuda(?::([0-9]{1,3}))?");

  private final String name;
  private final int cudaIndex; // -1 for the CPU

  private Device(String name, int cudaIndex) {
    this.name = name;
    this.cudaIndex = cudaIndex;
  }

  /** The processor. */
  public static Device cpu() {
    return CPU;
  }

  /**
   * An NVIDIA GPU of compute capability 8.0 or higher, numbered as CUDA does: the fastest first, or, with {@code
   * CUDA_DEVICE_ORDER=PCI_BUS_ID} in the environment, as {@code nvidia-smi} does. Whether the machine has it is found out
   * by {@link Engine#create(EngineOptions)}, which says what is missing.
   *
   * @throws IllegalArgumentException if {@code index} is negative
   */
  public static Device cuda(int index) {
    if (index < 0) {
      throw new IllegalArgumentException("index of a CUDA device: 0 or more expected, found " + index);
    }
    return new Device("cuda:" + index, index);
  }

  /**
   * The device called {@code name}: {@code "cpu"}, {@code "cuda:0"} and so on; {@code "cuda"} is the first GPU.
   *
   * @throws IllegalArgumentException for anything that is not the name of a device
   */
  public static Device parse(String name) {
    if (name.equals("cpu")) {
      return CPU;
    }
    Matcher cuda = CUDA.matcher(name);
    if (cuda.matches()) {
      return cuda(cuda.group(1) == null ? 0 : Integer.parseInt(cuda.group(1)));
    }
    throw new IllegalArgumentException("device '" + name + "' is unknown; expected 'cpu' or 'cuda:0', 'cuda:1', ...");
  }

  /** Whether it is a GPU. */
  public boolean isCuda() {
    return cudaIndex >= 0;
  }

  /** Number of the GPU; 0 for the CPU. */
  int index() {
    return Math.max(0, cudaIndex);
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof Device device && name.equals(device.name);
  }

  @Override
  public int hashCode() {
    return Objects.hashCode(name);
  }

  /** The name that {@link #parse} takes. */
  @Override
  public String toString() {
    return name;
  }
}

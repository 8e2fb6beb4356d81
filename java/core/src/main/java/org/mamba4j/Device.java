package org.mamba4j;

import java.util.Objects;
import java.util.regex.Pattern;

/** Where an {@link Engine} computes. An immutable value. */
public final class Device {
  private static final Device CPU = new Device("cpu");
  private static final Pattern CUDA = Pattern.compile("cuda(:[0-9]{1,3})?");

  private final String name;

  private Device(String name) {
    this.name = name;
  }

  /** The processor. */
  public static Device cpu() {
    return CPU;
  }

  /**
   * The device called {@code name}: {@code "cpu"}.
   *
   * @throws UnsupportedOperationException for a device that this build does not offer, such as {@code "cuda:0"}
   * @throws IllegalArgumentException for anything that is not the name of a device
   */
  public static Device parse(String name) {
    if (name.equals("cpu")) {
      return CPU;
    }
    if (CUDA.matcher(name).matches()) {
      throw new UnsupportedOperationException("device '" + name + "' is not offered by this build, only 'cpu'");
    }
    throw new IllegalArgumentException("device '" + name + "' is unknown; expected 'cpu'");
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

package org.mamba4j.internal;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import org.mamba4j.Device;
import org.mamba4j.Tensor;
import org.mamba4j.ffi.m4j_error;
import org.mamba4j.ffi.m4j_tensor;

/**
 * One call of a native operation on tensors of the user.
 *
 * <p>Native code finds the tensors' memory through addresses inside structs. The linker keeps memory alive during a
 * call only if its segment is an argument; otherwise another thread could close a shared arena in the middle. So
 * every tensor's segment is passed as one more argument behind those the function reads. The calling conventions of
 * all platforms with a native library leave stack and argument registers to the caller, so a function never sees
 * them.
 */
public final class OpCall {
  private final Arena arena;
  private final Device device;
  private final List<MemorySegment> memory = new ArrayList<>();

  /** Structs and the error text of the call are allocated in {@code arena}; its tensors lie on {@code device}. */
  public OpCall(Arena arena, Device device) {
    this.arena = arena;
    this.device = device;
  }

  /** Describes an input in {@code struct}; null means absent, which a zeroed struct says. */
  public OpCall input(MemorySegment struct, String name, Tensor tensor) {
    if (tensor != null) {
      if (!tensor.device().equals(device)) {
        throw new IllegalArgumentException(
            "%s: a tensor on %s expected, found one on %s; copy it with Tensor.%s"
                .formatted(name, device, tensor.device(), device.isCuda() ? "toDevice" : "toHost"));
      }
      TensorStruct.write(struct, name, tensor);
      memory.add(tensor.pointer());
    }
    return this;
  }

  /** Describes an output in {@code struct}; null means absent, which a zeroed struct says. */
  public OpCall output(MemorySegment struct, String name, Tensor tensor) {
    if (tensor != null && tensor.pointer().isReadOnly()) {
      throw new IllegalArgumentException(name + ": writable memory expected, found a read-only segment");
    }
    return input(struct, name, tensor);
  }

  /** A new struct that describes an input. */
  public MemorySegment input(String name, Tensor tensor) {
    MemorySegment struct = m4j_tensor.allocate(arena);
    input(struct, name, tensor);
    return struct;
  }

  /** A new struct that describes an output. */
  public MemorySegment output(String name, Tensor tensor) {
    MemorySegment struct = m4j_tensor.allocate(arena);
    output(struct, name, tensor);
    return struct;
  }

  /** Calls {@code function} with {@code arguments}, all but the error, which is last; throws what it reports. */
  public void invoke(OpFunction function, Object... arguments) {
    MemorySegment error = m4j_error.allocate(arena);
    List<Object> all = new ArrayList<>(Arrays.asList(arguments));
    all.add(error);
    all.addAll(memory);
    all.addAll(Collections.nCopies(function.tensors - memory.size(), MemorySegment.NULL)); // absent ones
    int status;
    try {
      status = (int) function.handle.invokeWithArguments(all);
    } catch (RuntimeException | Error e) {
      throw e;
    } catch (Throwable e) {
      throw new AssertionError("a native call throws nothing checked", e);
    }
    Status.check(status, error);
  }
}

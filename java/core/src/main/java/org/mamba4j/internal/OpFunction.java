package org.mamba4j.internal;

import static org.mamba4j.ffi.mamba4j_h.C_POINTER;

import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemorySegment;
import java.lang.invoke.MethodHandle;
import java.util.Collections;
import org.mamba4j.ffi.mamba4j_h;

/** The native operations on tensors, as {@link OpCall} calls them. May only be touched once the library is loaded. */
public enum OpFunction {
  SELECTIVE_SCAN(mamba4j_h.m4j_selective_scan$address(), mamba4j_h.m4j_selective_scan$descriptor(), 11),
  SSD(mamba4j_h.m4j_ssd$address(), mamba4j_h.m4j_ssd$descriptor(), 10),
  CAUSAL_CONV1D(mamba4j_h.m4j_causal_conv1d$address(), mamba4j_h.m4j_causal_conv1d$descriptor(), 6),
  RMS_NORM(mamba4j_h.m4j_rms_norm$address(), mamba4j_h.m4j_rms_norm$descriptor(), 4),
  LINEAR(mamba4j_h.m4j_linear$address(), mamba4j_h.m4j_linear$descriptor(), 4),
  EMBEDDING(mamba4j_h.m4j_embedding$address(), mamba4j_h.m4j_embedding$descriptor(), 2),
  QUANTIZE(mamba4j_h.m4j_quantize$address(), mamba4j_h.m4j_quantize$descriptor(), 2),
  SOFTMAX(mamba4j_h.m4j_softmax$address(), mamba4j_h.m4j_softmax$descriptor(), 2),
  LOG_SOFTMAX(mamba4j_h.m4j_log_softmax$address(), mamba4j_h.m4j_log_softmax$descriptor(), 2),
  COPY(mamba4j_h.m4j_copy$address(), mamba4j_h.m4j_copy$descriptor(), 2),
  SAMPLE(mamba4j_h.m4j_sample$address(), mamba4j_h.m4j_sample$descriptor(), 1);

  final int tensors; // how many, optional ones included
  final MethodHandle handle; // the function's parameters, then the memory of each tensor

  OpFunction(MemorySegment address, FunctionDescriptor descriptor, int tensors) {
    this.tensors = tensors;
    MemoryLayout[] memory = Collections.nCopies(tensors, C_POINTER).toArray(MemoryLayout[]::new);
    this.handle = Linker.nativeLinker().downcallHandle(address, descriptor.appendArgumentLayouts(memory));
  }
}

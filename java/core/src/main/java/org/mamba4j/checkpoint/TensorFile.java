package org.mamba4j.checkpoint;

import java.nio.file.Path;
import java.util.Set;
import org.mamba4j.Tensor;

/** A file that holds tensors by name. */
sealed interface TensorFile extends AutoCloseable permits SafetensorsFile, TorchFile {
  Path path();

  Set<String> names();

  Tensor tensor(String name) throws CheckpointException;

  @Override
  void close();
}

package org.mamba4j.checkpoint;

import java.nio.file.Path;
import java.util.Set;
import org.mamba4j.Tensor;

/** A file that holds tensors by name. */
sealed interface TensorFile extends AutoCloseable permits SafetensorsFile, TorchFile, GgufWeights {
  Path path();

  Set<String> names();

  Tensor tensor(String name) throws CheckpointException;

  /** What Hugging Face calls the tensor that this file calls {@code name}; {@code name} where that is unknown. */
  default String canonical(String name) {
    String plain = name.startsWith("model.backbone.") || name.startsWith("model.lm_head.") ? name.substring(6) : name;
    return plain.equals("backbone.embedding.weight") ? WeightNames.EMBEDDING : plain;
  }

  /** What a file of this kind calls a tensor, for messages. */
  default String spelling(String canonical) {
    return canonical;
  }

  @Override
  void close();
}

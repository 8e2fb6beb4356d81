package org.mamba4j.cli;

import java.io.IOException;
import org.mamba4j.ActivationType;
import org.mamba4j.Engine;
import org.mamba4j.Model;
import org.mamba4j.ModelOptions;
import org.mamba4j.StateType;
import org.mamba4j.WeightType;
import org.mamba4j.text.TextModel;
import picocli.CommandLine.Option;

/** Which model, to compute with. */
final class LoadOptions extends ModelOption {
  @Option(
      names = "--state",
      paramLabel = "TYPE",
      defaultValue = "f32",
      description = {
        "Element type of the SSM states between tokens: ${COMPLETION-CANDIDATES}. BF16, on a GPU only, halves their",
        "memory and makes large batches decode faster, at a small error."
      })
  StateType state;

  @Option(
      names = "--activations",
      paramLabel = "TYPE",
      defaultValue = "f32",
      description = {
        "What activations may be rounded to where they meet weights of that type: ${COMPLETION-CANDIDATES}. BF16 makes",
        "prompts faster on processors that multiply bfloat16 (AVX-512 BF16, AMX), at a small error."
      })
  ActivationType activations;

  /** The model on an engine that stays the caller's. */
  Model load(Engine engine) throws IOException {
    return Model.load(folder(), options(engine));
  }

  /** The model with its tokenizer, if it has one. */
  TextModel loadText(Engine engine) throws IOException {
    return loadText(engine, weights);
  }

  /** With its matrices in another type than {@code --weights} says. */
  TextModel loadText(Engine engine, WeightType type) throws IOException {
    return TextModel.load(folder(), options(engine).withWeightType(type));
  }

  ModelOptions options(Engine engine) {
    return ModelOptions.defaults()
        .withEngine(engine)
        .withWeightType(weights)
        .withStateType(state)
        .withActivationType(activations)
        .withProgress(progress());
  }
}

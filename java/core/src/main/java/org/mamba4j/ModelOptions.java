package org.mamba4j;

import java.util.Objects;

/**
 * How a {@link Model} is loaded. Immutable.
 *
 * @param engineOptions the engine to make for the model; ignored if {@code engine} is given
 * @param engine an engine to share, which the model does not close; null to make one for the model alone
 * @param weights whether weights stay in the mapped files
 * @param weightType element type of the matrices; another one than {@link WeightType#STORED} has them converted into
 *     native memory while loading, which reads the files once and lets go of them
 * @param stateType element type of the SSM states of sequences; {@link StateType#BF16} needs a GPU
 * @param activationType what activations may be rounded to on the CPU
 * @param progress hears about downloading and reading
 */
public record ModelOptions(
    EngineOptions engineOptions,
    Engine engine,
    Weights weights,
    WeightType weightType,
    StateType stateType,
    ActivationType activationType,
    ProgressListener progress) {

  /** Where weights live. */
  public enum Weights {
    /**
     * In the mapped files, read by the operating system when first used and shared between processes. While the model
     * is open nobody may truncate the files: the operating system ends a process that reads behind their new end.
     * Models of at most 4 MiB are copied all the same, which makes them faster. A GPU has a copy of its own: its models
     * need no file, and no memory of the process for their matrices, once they are loaded.
     */
    MAPPED,
    /** In native memory of the process, read while loading. The files may change afterwards. */
    COPIED
  }

  private static final ModelOptions DEFAULTS =
      new ModelOptions(
          EngineOptions.defaults(),
          null,
          Weights.MAPPED,
          WeightType.STORED,
          StateType.F32,
          ActivationType.F32,
          (what, done, total) -> {});

  public ModelOptions {
    Objects.requireNonNull(engineOptions, "engineOptions");
    Objects.requireNonNull(weights, "weights");
    Objects.requireNonNull(weightType, "weightType");
    Objects.requireNonNull(stateType, "stateType");
    Objects.requireNonNull(activationType, "activationType");
    Objects.requireNonNull(progress, "progress");
  }

  /** An engine of its own with default options, mapped weights as they are stored, all else float32, no reports. */
  public static ModelOptions defaults() {
    return DEFAULTS;
  }

  /** These options with another device for the model's own engine. */
  public ModelOptions withDevice(Device device) {
    return new ModelOptions(
        engineOptions.withDevice(device), engine, weights, weightType, stateType, activationType, progress);
  }

  /** These options with another number of threads for the model's own engine, 0 for the default. */
  public ModelOptions withThreads(int threads) {
    return new ModelOptions(
        engineOptions.withThreads(threads), engine, weights, weightType, stateType, activationType, progress);
  }

  /** These options with another instruction set for the model's own engine, null for the best. */
  public ModelOptions withSimdTarget(String simdTarget) {
    return new ModelOptions(
        engineOptions.withSimdTarget(simdTarget), engine, weights, weightType, stateType, activationType, progress);
  }

  /** These options with an engine to share, which stays the caller's to close. */
  public ModelOptions withEngine(Engine engine) {
    Objects.requireNonNull(engine, "engine");
    return new ModelOptions(engineOptions, engine, weights, weightType, stateType, activationType, progress);
  }

  /** These options with another place for the weights. */
  public ModelOptions withWeights(Weights weights) {
    return new ModelOptions(engineOptions, engine, weights, weightType, stateType, activationType, progress);
  }

  /** These options with another element type for the matrices in memory. */
  public ModelOptions withWeightType(WeightType weightType) {
    return new ModelOptions(engineOptions, engine, weights, weightType, stateType, activationType, progress);
  }

  /**
   * These options with another element type for the SSM states of sequences. Loading a model on the CPU with another
   * one than {@link StateType#F32} is an {@link UnsupportedOperationException}.
   */
  public ModelOptions withStateType(StateType stateType) {
    return new ModelOptions(engineOptions, engine, weights, weightType, stateType, activationType, progress);
  }

  /** These options with another type that activations may be rounded to where they meet matrices of it. */
  public ModelOptions withActivationType(ActivationType activationType) {
    return new ModelOptions(engineOptions, engine, weights, weightType, stateType, activationType, progress);
  }

  /** These options with a listener. */
  public ModelOptions withProgress(ProgressListener progress) {
    return new ModelOptions(engineOptions, engine, weights, weightType, stateType, activationType, progress);
  }
}

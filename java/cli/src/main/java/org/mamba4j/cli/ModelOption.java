package org.mamba4j.cli;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.regex.Pattern;
import org.mamba4j.ProgressListener;
import org.mamba4j.WeightType;
import org.mamba4j.hub.Hub;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;
import picocli.CommandLine.Spec.Target;

/** Which model. */
class ModelOption {
  /** Set by the launcher when standard error is a terminal, which Java cannot find out. */
  static final String TERMINAL_PROPERTY = "org.mamba4j.cli.terminal";

  private static final Pattern HUB_ID = Pattern.compile("[A-Za-z0-9][\\w.-]*(/[A-Za-z0-9][\\w.-]*)?");

  @Spec(Target.MIXEE)
  CommandSpec command;

  @Option(
      names = "--model",
      required = true,
      paramLabel = "DIR|FILE|ID",
      description = {
        "Folder of the model (config.json with model.safetensors, its shards, or pytorch_model.bin), a GGUF file,",
        "or its id on the Hugging Face hub, such as state-spaces/mamba-130m-hf. Downloads obey HF_HOME, HF_ENDPOINT,"
            + " HF_TOKEN and HF_HUB_OFFLINE."
      })
  String model;

  @Option(
      names = "--weights",
      paramLabel = "TYPE",
      defaultValue = "stored",
      description = {
        "Element type of the matrices: ${COMPLETION-CANDIDATES}; INT8 and INT4 share a scale among 32 weights. What",
        "differs from the files is converted while loading."
      })
  WeightType weights;

  /** The folder or GGUF file, after a download if need be. */
  Path folder() throws IOException {
    Path path = Path.of(model);
    if (!model.isEmpty() && Files.exists(path)) { // an empty path would be the working folder
      return path;
    }
    if (!HUB_ID.matcher(model).matches()) {
      throw new IOException("there is no folder '" + model + "'");
    }
    try {
      return Hub.fromEnvironment().download(model, "main", progress());
    } catch (IOException e) {
      throw new IOException(
          "there is no folder '%s', and no model of that name to download: %s".formatted(model, Errors.describe(e)), e);
    }
  }

  ProgressListener progress() {
    return new ProgressBar(command.commandLine().getErr(), Boolean.getBoolean(TERMINAL_PROPERTY));
  }
}

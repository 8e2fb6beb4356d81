package org.mamba4j.cli;

import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.OutputStreamWriter;
import java.io.PrintWriter;
import java.nio.charset.StandardCharsets;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.HelpCommand;
import picocli.CommandLine.Option;
import picocli.CommandLine.ScopeType;

/** Entry point of the {@code mamba4j} command. */
@Command(
    name = "mamba4j",
    description = "Runs Mamba-1, Falcon-Mamba and Mamba-2 language models.",
    subcommands = {
      GenerateCommand.class,
      ScoreCommand.class,
      InspectCommand.class,
      ConvertCommand.class,
      LogitsCommand.class,
      BenchCommand.class,
      OpCommand.class,
      HelpCommand.class
    },
    versionProvider = Version.class,
    footer = {
      "",
      "A model is a folder in the Hugging Face or the state-spaces layout, or the id of one on the Hugging Face hub,",
      "which is downloaded once into the cache that the Python client uses too.",
      "",
      "Examples:",
      "  mamba4j inspect --model tests/models/mamba2-java-9m",
      "  mamba4j generate --model tests/models/mamba2-java-9m --prompt 'public class Point {'",
      "  mamba4j generate --model state-spaces/mamba-130m-hf --prompt 'A whale is' --temperature 0.8",
      "",
      "mamba4j help COMMAND explains a command."
    })
public final class Main extends CliCommand {
  @Option(
      names = "--verbose",
      scope = ScopeType.INHERIT,
      description = "Print the stack trace of an error too.",
      defaultValue = "false")
  boolean verbose;

  /** Ends the process with the exit code of the command. */
  public static void main(String[] args) {
    // UTF-8 whatever the locale is: model output is text, and JSON is UTF-8.
    PrintWriter out = utf8(FileDescriptor.out);
    PrintWriter err = utf8(FileDescriptor.err);
    int code = run(out, err, args);
    if (out.checkError() && code == CommandLine.ExitCode.OK) {
      err.println("mamba4j: the output could not be written");
      code = CommandLine.ExitCode.SOFTWARE;
    }
    err.flush();
    System.exit(code);
  }

  /**
   * Runs a command inside this process.
   *
   * @return 0 after success, 1 after an error, 2 after wrong usage
   */
  public static int run(PrintWriter out, PrintWriter err, String... args) {
    Main main = new Main();
    CommandLine line = new CommandLine(main);
    line.setOut(out).setErr(err);
    line.setCaseInsensitiveEnumValuesAllowed(true);
    line.setExpandAtFiles(false); // a prompt may begin with @
    line.setParameterExceptionHandler(
        (e, arguments) -> {
          String command = e.getCommandLine().getCommandSpec().qualifiedName(" ");
          err.println("mamba4j: " + e.getMessage());
          err.println("Try: " + command + " --help");
          return CommandLine.ExitCode.USAGE;
        });
    line.setExecutionExceptionHandler((e, at, arguments) -> report(e, err, main.verbose));
    try {
      return line.execute(args);
    } catch (Error e) {
      return report(e, err, main.verbose);
    } finally {
      out.flush();
      err.flush();
    }
  }

  @Override
  public Integer call() {
    spec.commandLine().usage(err());
    return CommandLine.ExitCode.USAGE;
  }

  private static int report(Throwable e, PrintWriter err, boolean verbose) {
    err.println("mamba4j: " + Errors.describe(e));
    if (verbose) {
      e.printStackTrace(err);
    }
    return CommandLine.ExitCode.SOFTWARE;
  }

  private static PrintWriter utf8(FileDescriptor descriptor) {
    return new PrintWriter(new OutputStreamWriter(new FileOutputStream(descriptor), StandardCharsets.UTF_8));
  }
}

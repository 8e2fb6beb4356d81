package org.mamba4j.cli;

import java.util.Objects;
import picocli.CommandLine.IVersionProvider;

/** The version that the jar was packed with. */
final class Version implements IVersionProvider {
  @Override
  public String[] getVersion() {
    String version = Main.class.getPackage().getImplementationVersion();
    return new String[] {
      "mamba4j " + Objects.requireNonNullElse(version, "(unpacked classes)"),
      "Java " + Runtime.version() + " on " + System.getProperty("os.name") + " " + System.getProperty("os.arch")
    };
  }
}

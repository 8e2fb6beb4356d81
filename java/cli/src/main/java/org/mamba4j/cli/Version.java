package org.mamba4j.cli;

import java.lang.module.ModuleDescriptor;
import java.util.Objects;
import picocli.CommandLine.IVersionProvider;

/** The version of the jar. */
final class Version implements IVersionProvider {
  @Override
  public String[] getVersion() {
    return new String[] {
      "mamba4j " + version(),
      "Java " + Runtime.version() + " on " + System.getProperty("os.name") + " " + System.getProperty("os.arch")
    };
  }

  /** A module has it in its descriptor, a jar on the class path in its manifest. */
  private static String version() {
    ModuleDescriptor module = Main.class.getModule().getDescriptor();
    return module == null
        ? Objects.requireNonNullElse(Main.class.getPackage().getImplementationVersion(), "(unpacked classes)")
        : module.rawVersion().orElseThrow();
  }
}

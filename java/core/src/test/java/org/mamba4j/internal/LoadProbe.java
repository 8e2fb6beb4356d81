package org.mamba4j.internal;

import java.io.File;
import java.net.URL;
import java.net.URLClassLoader;
import org.mamba4j.Engine;
import org.mamba4j.MambaException;

/** Main class of the JVMs that {@link NativeLibraryTest} starts: loads the library twice and prints what came of it. */
final class LoadProbe {
  private LoadProbe() {}

  /** With a class path as argument each load has a class loader of its own. */
  public static void main(String[] args) throws Exception {
    for (int attempt = 0; attempt < 2; attempt++) {
      if (args.length == 0) {
        try {
          System.out.println("loaded, " + Engine.simdTargets().size() + " targets");
        } catch (MambaException e) {
          System.out.println(e.getMessage());
        }
      } else {
        String[] entries = args[0].split(File.pathSeparator);
        URL[] urls = new URL[entries.length];
        for (int i = 0; i < entries.length; i++) {
          urls[i] = new File(entries[i]).toURI().toURL();
        }
        var loader = new URLClassLoader(urls, ClassLoader.getPlatformClassLoader());
        System.out.println("loaded, " + loader.loadClass("org.mamba4j.Engine").getMethod("simdTargets").invoke(null));
      }
    }
  }
}

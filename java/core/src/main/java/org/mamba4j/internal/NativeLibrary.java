package org.mamba4j.internal;

import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.Map;
import java.util.TreeMap;
import org.mamba4j.MambaException;
import org.mamba4j.ffi.m4j_advance_args;
import org.mamba4j.ffi.m4j_causal_conv1d_args;
import org.mamba4j.ffi.m4j_completion;
import org.mamba4j.ffi.m4j_engine_options;
import org.mamba4j.ffi.m4j_error;
import org.mamba4j.ffi.m4j_layer_weights;
import org.mamba4j.ffi.m4j_linear_args;
import org.mamba4j.ffi.m4j_model_config;
import org.mamba4j.ffi.m4j_model_weights;
import org.mamba4j.ffi.m4j_rms_norm_args;
import org.mamba4j.ffi.m4j_sample_args;
import org.mamba4j.ffi.m4j_sampling;
import org.mamba4j.ffi.m4j_selective_scan_args;
import org.mamba4j.ffi.m4j_ssd_args;
import org.mamba4j.ffi.m4j_tensor;
import org.mamba4j.ffi.mamba4j_h;

/**
 * Finds, loads and checks the native library, once a class loader. The first of these that is set is used:
 *
 * <ol>
 *   <li>the file named by the system property {@value #PROPERTY},
 *   <li>the file named by the environment variable {@value #VARIABLE},
 *   <li>the copy inside this module.
 * </ol>
 */
public final class NativeLibrary {
  public static final String PROPERTY = "mamba4j.library";
  public static final String VARIABLE = "MAMBA4J_LIBRARY";

  private static final String FILE_NAME = "libmamba4j.so";

  private static volatile boolean ready;
  private static String refusal; // why the library that was loaded is not used; it cannot be unloaded

  private NativeLibrary() {}

  /** Loads the library if that has not been done; {@link MambaException} says what was tried and what to do. */
  public static void load() {
    if (!ready) {
      loadOnce();
    }
  }

  private static synchronized void loadOnce() {
    if (ready) {
      return;
    }
    if (refusal != null) {
      throw new MambaException(refusal);
    }
    if (mamba4j_h.class.getClassLoader() != NativeLibrary.class.getClassLoader()) {
      // Symbols are looked up in the class loader of the bindings, libraries belong to that of this class.
      throw new MambaException(
          "mamba4j-core and mamba4j-ffi must be loaded by the same class loader, found %s and %s"
              .formatted(NativeLibrary.class.getClassLoader(), mamba4j_h.class.getClassLoader()));
    }
    String property = System.getProperty(PROPERTY);
    String variable = System.getenv(VARIABLE);
    String source;
    if (isSet(property)) {
      source = loadNamed("system property " + PROPERTY, property);
    } else if (isSet(variable)) {
      source = loadNamed("environment variable " + VARIABLE, variable);
    } else {
      source = loadPacked(System.getProperty("os.name"), System.getProperty("os.arch"));
    }
    try {
      checkVersion(source, version(source));
      checkStructSizes(source, mamba4j_h.m4j_abi_layout().getString(0));
    } catch (MambaException e) {
      refusal = e.getMessage();
      throw e;
    }
    ready = true;
  }

  private static String loadNamed(String setting, String name) {
    Path file;
    try {
      file = Path.of(name).toAbsolutePath();
    } catch (InvalidPathException e) {
      throw new MambaException("%s: '%s' is not a path".formatted(setting, name), e);
    }
    if (!Files.isRegularFile(file)) {
      throw new MambaException(
          "%s: there is no file %s; name the %s that scripts/build-native.sh makes, or unset it to use the copy in the"
                  .formatted(setting, file, FILE_NAME)
              + " jar");
    }
    loadFile(file, setting);
    return setting + " (" + file + ")";
  }

  /**
   * Extracts the packed library into a new folder that only this user may enter, and deletes it once it is mapped: no
   * other process can exchange it, nothing stays behind, and each class loader gets a file of its own, as Java wants.
   */
  static String loadPacked(String osName, String osArch) {
    String resource = resource(osName, osArch, FILE_NAME);
    try (InputStream packed = NativeLibrary.class.getResourceAsStream(resource)) {
      if (packed == null) {
        throw new MambaException(
            ("no native library for %s-%s. Tried: system property %s (not set), environment variable %s (not set),"
                    + " %s in mamba4j-core (absent). Build it with scripts/build-native.sh and name it by -D%s=FILE, or"
                    + " use a mamba4j-core that was packed for this platform")
                .formatted(osName, osArch, PROPERTY, VARIABLE, resource, PROPERTY));
      }
      Path folder = Files.createTempDirectory("mamba4j-"); // rwx for the owner alone
      try {
        Path file = folder.resolve(FILE_NAME);
        Files.copy(packed, file);
        loadFile(file, "the copy packed in mamba4j-core");
      } finally {
        Files.deleteIfExists(folder.resolve(FILE_NAME));
        Files.deleteIfExists(folder);
      }
      return "the copy packed in mamba4j-core";
    } catch (IOException e) {
      throw new MambaException(
          "could not extract the native library to %s: %s. Set -Djava.io.tmpdir to a writable folder, or name an"
                  .formatted(System.getProperty("java.io.tmpdir"), e)
              + " extracted library by -D" + PROPERTY + "=FILE",
          e);
    }
  }

  /** Where a library is packed in this module. */
  static String resource(String osName, String osArch, String fileName) {
    return "/org/mamba4j/native/%s-%s/%s".formatted(osName, osArch, fileName);
  }

  /** Whether the library was named by a setting and not taken from this module. */
  static boolean isNamed() {
    return isSet(System.getProperty(PROPERTY)) || isSet(System.getenv(VARIABLE));
  }

  private static boolean isSet(String setting) {
    return setting != null && !setting.isEmpty();
  }

  private static void loadFile(Path file, String source) {
    try {
      System.load(file.toString());
    } catch (UnsatisfiedLinkError e) {
      throw new MambaException(
          ("%s: %s could not be loaded: %s. It must be built for this platform and its C library, and lie on a file"
                  + " system that permits execution (else set -Djava.io.tmpdir or -D%s)")
              .formatted(source, file, e.getMessage(), PROPERTY),
          e);
    } catch (IllegalCallerException e) {
      throw accessDenied(e);
    }
  }

  private static MambaException accessDenied(IllegalCallerException e) {
    return new MambaException(
        "native access is denied; run java with --enable-native-access=org.mamba4j.core,org.mamba4j.ffi (on the class"
            + " path: --enable-native-access=ALL-UNNAMED)",
        e);
  }

  private static int version(String source) {
    try {
      return mamba4j_h.m4j_abi_version();
    } catch (LinkageError e) {
      if (e.getCause() instanceof IllegalCallerException denied) {
        throw accessDenied(denied);
      }
      throw new MambaException(source + " is not a mamba4j library: it has no function m4j_abi_version", e);
    }
  }

  static void checkVersion(String source, int version) {
    if (version != mamba4j_h.M4J_ABI_VERSION()) {
      throw new MambaException(
          "%s has ABI version %d, these classes need %d; use a library and jars of the same release"
              .formatted(source, version, mamba4j_h.M4J_ABI_VERSION()));
    }
  }

  /** {@code layout} is what m4j_abi_layout() returns. */
  static void checkStructSizes(String source, String layout) {
    Map<String, Long> found = new TreeMap<>();
    layout
        .lines()
        .map(line -> line.split(" "))
        .filter(words -> words.length == 3 && words[0].equals("struct"))
        .forEach(words -> found.put(words[1], Long.valueOf(words[2])));
    Map<String, Long> expected = structSizes();
    if (!found.equals(expected)) {
      throw new MambaException(
          "%s has other structs than these classes; use a library and jars of the same release. Expected %s, found %s"
              .formatted(source, expected, found));
    }
  }

  /** Sizes of all structs as the bindings have them. */
  static Map<String, Long> structSizes() {
    return new TreeMap<>(
        Map.ofEntries(
            Map.entry("m4j_error", m4j_error.sizeof()),
            Map.entry("m4j_tensor", m4j_tensor.sizeof()),
            Map.entry("m4j_engine_options", m4j_engine_options.sizeof()),
            Map.entry("m4j_model_config", m4j_model_config.sizeof()),
            Map.entry("m4j_layer_weights", m4j_layer_weights.sizeof()),
            Map.entry("m4j_model_weights", m4j_model_weights.sizeof()),
            Map.entry("m4j_advance_args", m4j_advance_args.sizeof()),
            Map.entry("m4j_selective_scan_args", m4j_selective_scan_args.sizeof()),
            Map.entry("m4j_ssd_args", m4j_ssd_args.sizeof()),
            Map.entry("m4j_causal_conv1d_args", m4j_causal_conv1d_args.sizeof()),
            Map.entry("m4j_rms_norm_args", m4j_rms_norm_args.sizeof()),
            Map.entry("m4j_sample_args", m4j_sample_args.sizeof()),
            Map.entry("m4j_sampling", m4j_sampling.sizeof()),
            Map.entry("m4j_linear_args", m4j_linear_args.sizeof()),
            Map.entry("m4j_completion", m4j_completion.sizeof())));
  }
}

package org.mamba4j.internal;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.File;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;
import org.mamba4j.MambaException;
import org.mamba4j.TestData;
import org.mamba4j.ffi.mamba4j_h;

/** Loading, each time in a JVM of its own, since a library is loaded once. */
@Timeout(120)
class NativeLibraryTest {
  @TempDir private Path folder;
  private Path temporary;

  @BeforeEach
  void makeFolders() throws IOException {
    temporary = Files.createDirectory(folder.resolve("tmp"));
  }

  @Test
  void thePackedCopyLoadsAndLeavesNothingBehind() throws Exception {
    assertLoaded(run(false, Map.of(), "-Djava.io.tmpdir=" + temporary));
    try (Stream<Path> left = Files.list(temporary)) {
      assertEquals(List.of(), left.toList());
    }
  }

  @Test
  void everyClassLoaderGetsALibraryOfItsOwn() throws Exception {
    assertLoaded(run(true, Map.of(), "-Djava.io.tmpdir=" + temporary));
  }

  @Test
  void propertyAndVariableNameAFile() throws Exception {
    String library = TestData.nativeLibrary().toString();
    assertLoaded(run(false, Map.of("MAMBA4J_LIBRARY", "/absent.so"), "-Dmamba4j.library=" + library));
    assertLoaded(run(false, Map.of("MAMBA4J_LIBRARY", library), "-Djava.io.tmpdir=/absent"));
  }

  @Test
  void whatCannotBeLoadedIsRefusedInWordsEveryTime() throws Exception {
    Path text = Files.writeString(folder.resolve("libtext.so"), "no library");
    Path zip = Path.of(System.getProperty("java.home"), "lib", System.mapLibraryName("zip"));
    Path foreign = Files.copy(zip, folder.resolve("libforeign.so"));
    assertRefused("system property mamba4j.library: there is no file /absent.so", "-Dmamba4j.library=/absent.so");
    assertRefused(text + " could not be loaded", "-Dmamba4j.library=" + text);
    assertRefused("is not a mamba4j library", "-Dmamba4j.library=" + foreign);
    assertRefused("no native library for Linux-none. Tried: ", "-Dos.name=Linux", "-Dos.arch=none");
    assertRefused("could not extract the native library", "-Djava.io.tmpdir=" + folder.resolve("absent"));
    assertRefused("--enable-native-access=org.mamba4j.core,org.mamba4j.ffi", "--illegal-native-access=deny");
  }

  @Test
  void aLibraryOfAnotherReleaseIsRefused() {
    int expected = mamba4j_h.M4J_ABI_VERSION();
    NativeLibrary.checkVersion("x.so", expected);
    var version = assertThrows(MambaException.class, () -> NativeLibrary.checkVersion("x.so", expected + 1));
    assertTrue(version.getMessage().startsWith("x.so has ABI version " + (expected + 1)), version.getMessage());

    NativeLibrary.load();
    String layout = mamba4j_h.m4j_abi_layout().getString(0);
    NativeLibrary.checkStructSizes("x.so", layout);
    String tensor = "struct m4j_tensor " + NativeLibrary.structSizes().get("m4j_tensor");
    for (String other : List.of(layout.replace(tensor, "struct m4j_tensor 8"), layout.replace(tensor, ""), "")) {
      var structs = assertThrows(MambaException.class, () -> NativeLibrary.checkStructSizes("x.so", other));
      assertTrue(structs.getMessage().startsWith("x.so has other structs"), structs.getMessage());
    }
  }

  private void assertRefused(String expected, String... jvmArguments) throws Exception {
    List<String> lines = run(false, Map.of(), jvmArguments);
    assertEquals(2, lines.size(), lines::toString);
    assertTrue(lines.stream().allMatch(line -> line.contains(expected)), lines::toString);
  }

  private static void assertLoaded(List<String> lines) {
    assertEquals(2, lines.size(), lines::toString);
    assertTrue(lines.stream().allMatch(line -> line.startsWith("loaded, ")), lines::toString);
  }

  /** Lines that {@link LoadProbe} prints, run on the class path of this test. */
  private List<String> run(boolean loaders, Map<String, String> environment, String... jvmArguments) throws Exception {
    Path probe = Path.of(LoadProbe.class.getResource("LoadProbe.class").toURI());
    String testClasses = probe.resolve("../../../..").normalize().toString();
    String modules = System.getProperty("jdk.module.path");
    String classPath = System.getProperty("java.class.path");
    String path = String.join(File.pathSeparator, testClasses, modules == null ? classPath : modules);
    List<String> command = new ArrayList<>();
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    command.add("-XX:+DisplayVMOutputToStderr"); // its warnings, among them one about broken libraries
    if (!List.of(jvmArguments).contains("--illegal-native-access=deny")) {
      command.add("--enable-native-access=ALL-UNNAMED");
    }
    command.addAll(List.of(jvmArguments));
    command.addAll(List.of("-cp", path, LoadProbe.class.getName()));
    if (loaders) {
      command.add(path);
    }
    Path output = folder.resolve("output");
    var builder =
        new ProcessBuilder(command)
            .redirectOutput(output.toFile())
            .redirectError(folder.resolve("errors").toFile());
    builder.environment().remove(NativeLibrary.VARIABLE);
    builder.environment().putAll(environment);
    Process process = builder.start();
    if (!process.waitFor(60, TimeUnit.SECONDS)) {
      process.destroyForcibly();
      throw new AssertionError("the JVM hangs: " + command);
    }
    assertEquals(0, process.exitValue(), () -> read(folder.resolve("errors")));
    return read(output).lines().toList();
  }

  private static String read(Path file) {
    try {
      return Files.readString(file);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}

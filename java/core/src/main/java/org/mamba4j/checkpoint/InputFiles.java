package org.mamba4j.checkpoint;

import static org.mamba4j.checkpoint.CheckpointException.in;

import java.io.IOException;
import java.io.InputStream;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.channels.FileChannel;
import java.nio.channels.FileChannel.MapMode;
import java.nio.file.AccessDeniedException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;

/** Opens files of a checkpoint. Only regular files: opening a pipe or a device could block for ever. */
final class InputFiles {
  /** Checks the file whose bytes are {@code bytes}; {@code arena}, which holds them, goes with the result. */
  @FunctionalInterface
  interface Reader<T> {
    T read(Path file, MemorySegment bytes, Arena arena) throws IOException;
  }

  private InputFiles() {}

  /** Maps a whole file read-only and reads it. */
  static <T> T open(Path file, Reader<T> reader) throws IOException {
    Arena arena = Arena.ofShared();
    try {
      return reader.read(file, map(file, arena), arena);
    } catch (Throwable e) {
      arena.close();
      throw e;
    }
  }

  private static MemorySegment map(Path file, Arena arena) throws IOException {
    requireRegular(file);
    try (FileChannel channel = FileChannel.open(file, StandardOpenOption.READ)) {
      return channel.map(MapMode.READ_ONLY, 0, channel.size(), arena);
    } catch (IOException e) {
      throw unreadable(file, e);
    }
  }

  /** The bytes of a file that is expected to be small. */
  static byte[] read(Path file, int maxBytes) throws IOException {
    requireRegular(file);
    byte[] bytes;
    try (InputStream in = Files.newInputStream(file)) {
      bytes = in.readNBytes(maxBytes + 1);
    } catch (IOException e) {
      throw unreadable(file, e);
    }
    if (bytes.length > maxBytes) {
      throw in(file, "expected at most " + maxBytes + " bytes, found more");
    }
    return bytes;
  }

  private static void requireRegular(Path file) throws CheckpointException {
    if (!Files.exists(file)) {
      throw in(file, "there is no such file");
    }
    if (!Files.isRegularFile(file)) {
      throw in(file, "expected a regular file, found " + (Files.isDirectory(file) ? "a folder" : "something else"));
    }
  }

  private static CheckpointException unreadable(Path file, IOException cause) {
    String why = cause instanceof AccessDeniedException ? "permission denied" : cause.toString();
    return new CheckpointException(file + ": cannot be read: " + why, cause);
  }
}

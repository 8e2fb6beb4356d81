package org.mamba4j.checkpoint;

import java.io.IOException;
import java.io.InterruptedIOException;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.channels.ClosedByInterruptException;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.UUID;

/** Writes files that appear at once and complete. */
final class OutputFiles {
  private static final long MAX_WRITE = 1 << 30;

  @FunctionalInterface
  interface Content {
    void writeTo(FileChannel out) throws IOException;
  }

  private OutputFiles() {}

  /**
   * Writes a file beside its place under another name, flushes it to disk and moves it. An existing file is replaced,
   * also one behind a link; readers that have it mapped keep the old one. What is no file, such as a device, is refused.
   *
   * @throws InterruptedIOException if the thread is interrupted; nothing has changed then
   */
  static void replace(Path place, Content content) throws IOException {
    Path path = Files.isSymbolicLink(place) ? place.toRealPath() : place;
    if (Files.exists(path) && !Files.isRegularFile(path)) {
      throw new IOException(place + " is not a file, which it would be replaced by");
    }
    Path partial = path.resolveSibling("." + path.getFileName() + "." + UUID.randomUUID() + ".partial");
    try {
      try (var out = FileChannel.open(partial, StandardOpenOption.CREATE_NEW, StandardOpenOption.WRITE)) {
        content.writeTo(out);
        out.force(true);
      }
      Files.move(partial, path, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
    } catch (ClosedByInterruptException e) {
      var interrupted = new InterruptedIOException("interrupted while writing " + place);
      interrupted.initCause(e);
      throw interrupted;
    } finally {
      Files.deleteIfExists(partial);
    }
  }

  static void write(FileChannel out, MemorySegment bytes) throws IOException {
    for (long at = 0; at < bytes.byteSize(); at += MAX_WRITE) {
      write(out, bytes.asSlice(at, Math.min(MAX_WRITE, bytes.byteSize() - at)).asByteBuffer());
    }
  }

  static void write(FileChannel out, ByteBuffer buffer) throws IOException {
    while (buffer.hasRemaining()) {
      out.write(buffer);
    }
  }
}

package org.mamba4j.internal;

import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import org.mamba4j.MambaException;

/**
 * The file of the library's CUDA part, for the time in which it is opened: beside a library that was named, else
 * extracted from this module into a folder that only this user may enter, which closing deletes.
 */
public final class CudaLibrary implements AutoCloseable {
  private static final String FILE_NAME = "libmamba4j_cuda.so";

  private final Path folder; // null if nothing was extracted

  private CudaLibrary(Path folder) {
    this.folder = folder;
  }

  /** Extracts the library if it is packed here. */
  public static CudaLibrary find() {
    if (NativeLibrary.isNamed()) {
      return new CudaLibrary(null);
    }
    String resource = NativeLibrary.resource(System.getProperty("os.name"), System.getProperty("os.arch"), FILE_NAME);
    try (InputStream packed = CudaLibrary.class.getResourceAsStream(resource)) {
      if (packed == null) {
        throw new UnsupportedOperationException(
            "this mamba4j-core has no CUDA part (%s); build it with scripts/build-native.sh --cuda before packing"
                .formatted(resource));
      }
      CudaLibrary library = new CudaLibrary(Files.createTempDirectory("mamba4j-"));
      try {
        Files.copy(packed, library.file());
        return library;
      } catch (IOException e) {
        library.close();
        throw e;
      }
    } catch (IOException e) {
      throw new MambaException(
          "could not extract %s to %s: %s. Set -Djava.io.tmpdir to a writable folder"
              .formatted(FILE_NAME, System.getProperty("java.io.tmpdir"), e),
          e);
    }
  }

  /** The file, or null for the one beside the library that was named. */
  public Path file() {
    return folder == null ? null : folder.resolve(FILE_NAME);
  }

  @Override
  public void close() {
    if (folder == null) {
      return;
    }
    try {
      Files.deleteIfExists(file());
      Files.deleteIfExists(folder);
    } catch (IOException e) {
      System.getLogger("org.mamba4j").log(System.Logger.Level.DEBUG, "could not delete " + folder, e);
    }
  }
}

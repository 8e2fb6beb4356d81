package org.mamba4j.hub;

import java.io.IOException;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.file.FileSystemException;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.List;
import java.util.concurrent.locks.ReentrantLock;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/**
 * One repository's folder in the cache layout of the Python hub client:
 *
 * <pre>
 * models--org--name/refs/REVISION              the commit that a branch or tag meant last
 * models--org--name/blobs/ETAG                 contents, one file per distinct content
 * models--org--name/blobs/ETAG.incomplete      a transfer to resume
 * models--org--name/snapshots/COMMIT/FILE      relative link to ../../blobs/ETAG
 * .locks/models--org--name/ETAG.lock           held while ETAG is written
 * </pre>
 *
 * <p>Every name that reaches the file system passes one of the checks here, whoever it came from.
 */
final class HubCache {
  private static final Pattern REPO_ID =
      Pattern.compile("[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95})?");
  private static final Pattern COMMIT = Pattern.compile("[0-9a-f]{40}");
  private static final Pattern SAFE_NAME = Pattern.compile("[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}");
  private static final Pattern REVISION =
      Pattern.compile("[A-Za-z0-9_][A-Za-z0-9_.+@-]*(/[A-Za-z0-9_][A-Za-z0-9_.+@-]*)*");

  /** File locks belong to the whole JVM, so threads need a lock of their own in front of them. */
  private static final List<ReentrantLock> THREAD_LOCKS =
      Stream.generate(ReentrantLock::new).limit(64).toList();

  private final Path root;
  private final String folderName;

  HubCache(Path cacheFolder, String repoId) {
    this.root = cacheFolder.toAbsolutePath().normalize();
    this.folderName = "models--" + repoId.replace("/", "--");
  }

  static void checkRepoId(String repoId) {
    if (!REPO_ID.matcher(repoId).matches()
        || repoId.contains("..")
        || repoId.contains("--")
        || repoId.endsWith(".")
        || repoId.endsWith("-")) {
      throw new IllegalArgumentException(
          "not a model repository id: '" + repoId
              + "'; expected 'organisation/name', for instance 'state-spaces/mamba-130m-hf'");
    }
  }

  static void checkRevision(String revision) {
    if (revision.length() > 200 || !REVISION.matcher(revision).matches() || revision.contains("..")) {
      throw new IllegalArgumentException(
          "not a revision: '" + revision + "'; expected a branch, a tag or a commit, for instance 'main'");
    }
  }

  static String checkCommit(String commit, String repoId) throws HubException {
    if (commit == null || !COMMIT.matcher(commit).matches()) {
      throw new HubException("the hub named commit '" + commit + "' for " + repoId + "; expected 40 hex digits");
    }
    return commit;
  }

  /** A file name inside a repository: folders are allowed, anything that could leave the snapshot is not. */
  static String checkFileName(String name, String source) throws HubException {
    boolean safe = name.length() <= 1024;
    for (String part : name.split("/", -1)) {
      safe &= SAFE_NAME.matcher(part).matches();
    }
    if (!safe) {
      throw new HubException(source + " names the file '" + printable(name)
          + "'; expected a relative path of letters, digits, '.', '_' and '-'");
    }
    return name;
  }

  static String checkEtag(String etag, String file) throws HubException {
    if (etag == null || !SAFE_NAME.matcher(etag).matches() || etag.endsWith(".incomplete")) {
      throw new HubException("the hub sent the ETag '" + (etag == null ? "(none)" : printable(etag)) + "' for " + file
          + "; expected a name of letters, digits, '.', '_' and '-'");
    }
    return etag;
  }

  private static String printable(String text) {
    String cut = text.length() > 200 ? text.substring(0, 200) + "…" : text;
    return cut.replaceAll("\\p{Cntrl}", "?");
  }

  Path folder() {
    return root.resolve(folderName);
  }

  Path blob(String etag) {
    return inside("blobs", etag);
  }

  Path snapshot(String commit) {
    return inside("snapshots", commit);
  }

  /** The commit that {@code revision} meant when it was last looked up, or null. */
  String cachedCommit(String revision) throws IOException {
    if (COMMIT.matcher(revision).matches()) {
      return revision;
    }
    Path ref = inside("refs", revision);
    if (!Files.isRegularFile(ref) || Files.size(ref) > 100) {
      return null;
    }
    String commit = Files.readString(ref).strip();
    return COMMIT.matcher(commit).matches() ? commit : null;
  }

  void writeRef(String revision, String commit) throws IOException {
    if (COMMIT.matcher(revision).matches()) {
      return;
    }
    Path ref = inside("refs", revision);
    Files.createDirectories(ref.getParent());
    Path temporary = Files.createTempFile(ref.getParent(), ".ref", ".tmp");
    try {
      Files.writeString(temporary, commit);
      Files.move(temporary, ref, StandardCopyOption.REPLACE_EXISTING, StandardCopyOption.ATOMIC_MOVE);
    } finally {
      Files.deleteIfExists(temporary);
    }
  }

  /** Makes {@code snapshots/commit/name} show the blob; where links are impossible, by copying it. */
  Path link(String commit, String name, String etag) throws IOException {
    Path pointer = inside("snapshots", commit + "/" + name);
    Path blob = blob(etag);
    Files.createDirectories(pointer.getParent());
    Path temporary = pointer.resolveSibling("." + pointer.getFileName() + "." + ProcessHandle.current().pid() + "."
        + Thread.currentThread().threadId() + ".tmp");
    try {
      Files.deleteIfExists(temporary);
      try {
        Files.createSymbolicLink(temporary, pointer.getParent().relativize(blob));
      } catch (UnsupportedOperationException | FileSystemException noLinks) {
        Files.copy(blob, temporary);
      }
      Files.move(temporary, pointer, StandardCopyOption.REPLACE_EXISTING, StandardCopyOption.ATOMIC_MOVE);
    } finally {
      Files.deleteIfExists(temporary);
    }
    return pointer;
  }

  /** Runs {@code action} while no other thread or process using this library works on the same blob. */
  <T> T locked(String etag, IoAction<T> action) throws IOException {
    Path lockFile = root.resolve(".locks").resolve(folderName).resolve(etag + ".lock");
    Files.createDirectories(lockFile.getParent());
    ReentrantLock threadLock = THREAD_LOCKS.get(Math.floorMod(lockFile.hashCode(), THREAD_LOCKS.size()));
    threadLock.lock();
    try (FileChannel channel =
            FileChannel.open(lockFile, StandardOpenOption.CREATE, StandardOpenOption.WRITE, LinkOption.NOFOLLOW_LINKS);
        FileLock _ = channel.lock()) {
      return action.run();
    } finally {
      threadLock.unlock();
    }
  }

  @FunctionalInterface
  interface IoAction<T> {
    T run() throws IOException;
  }

  private Path inside(String kind, String name) {
    Path folder = folder().resolve(kind);
    Path path = folder.resolve(name).normalize();
    if (!path.startsWith(folder) || path.equals(folder)) {
      throw new IllegalArgumentException("'" + printable(name) + "' leaves the cache folder " + folder);
    }
    return path;
  }
}

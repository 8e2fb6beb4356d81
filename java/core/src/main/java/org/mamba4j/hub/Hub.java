package org.mamba4j.hub;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.JsonToken;
import java.io.IOException;
import java.io.InputStream;
import java.io.InterruptedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;
import java.util.List;
import java.util.Objects;
import java.util.Set;
import java.util.TreeSet;
import org.mamba4j.ProgressListener;
import org.mamba4j.hub.HubClient.RemoteFile;

/**
 * Downloads model repositories from a hub into the cache that the Python hub client uses as well, so that either finds
 * what the other has fetched. The only code of this library that uses the network, and only when called.
 *
 * <p>Thread-safe. Downloads of the same file, also by other processes, wait for each other.
 */
public final class Hub {
  private static final System.Logger LOGGER = System.getLogger(Hub.class.getName());

  private static final String CONFIG = "config.json";
  private static final String SAFETENSORS = "model.safetensors";
  private static final String SAFETENSORS_INDEX = "model.safetensors.index.json";
  private static final String TORCH = "pytorch_model.bin";
  private static final List<String> SMALL_FILES = List.of(
      "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json");
  private static final int MAX_SHARDS = 10_000;

  private final HubOptions options;

  public Hub(HubOptions options) {
    this.options = Objects.requireNonNull(options, "options");
  }

  /** A hub as the environment describes it, see {@link HubOptions#fromEnvironment()}. */
  public static Hub fromEnvironment() {
    return new Hub(HubOptions.fromEnvironment());
  }

  public HubOptions options() {
    return options;
  }

  /**
   * Fetches what a model needs (config, tokenizer, weights; nothing else) unless it is in the cache already. A broken
   * transfer is resumed, also by a later call; contents are checked against the hub's checksums. If the hub cannot be
   * reached, the cached snapshot of the revision is used if it is complete.
   *
   * @param repoId {@code organisation/name}
   * @param revision branch, tag or commit; {@code main} is the usual branch
   * @param progress told about each transferred file; its name, bytes done, bytes in all (-1: unknown)
   * @return the snapshot folder
   * @throws HubException if the hub refuses, or sends what cannot be trusted
   * @throws InterruptedIOException if the thread is interrupted; what has arrived is kept
   * @throws IOException if the hub cannot be reached and the cache has no complete snapshot, or writing a file fails
   * @throws IllegalArgumentException if {@code repoId} or {@code revision} is malformed
   */
  public Path download(String repoId, String revision, ProgressListener progress) throws IOException {
    Objects.requireNonNull(progress, "progress");
    HubCache.checkRepoId(repoId);
    HubCache.checkRevision(revision);
    HubCache cache = new HubCache(options.cacheFolder(), repoId);
    if (options.offline()) {
      return cachedSnapshot(cache, repoId, revision, "HF_HUB_OFFLINE forbids downloads", null);
    }
    try (HubClient client = new HubClient(options)) {
      HubClient.Listing listing;
      try {
        listing = client.list(repoId, revision);
      } catch (HubException | InterruptedIOException final_) {
        throw final_;
      } catch (IOException unreachable) {
        return cachedSnapshot(cache, repoId, revision,
            options.endpoint() + " cannot be reached (" + HubClient.message(unreachable) + ")", unreachable);
      }
      new Download(client, cache, repoId, listing, progress).run();
      if (!listing.commit().equals(cache.cachedCommit(revision))) {
        cache.writeRef(revision, listing.commit());
      }
      return cache.snapshot(listing.commit());
    }
  }

  private static Path cachedSnapshot(HubCache cache, String repoId, String revision, String why, IOException cause)
      throws IOException {
    String commit = cache.cachedCommit(revision);
    String missing = commit == null ? "any file" : missingFile(cache.snapshot(commit));
    if (missing != null) {
      throw new IOException(why + ", and the cache lacks " + missing + " of " + repoId + " at revision '" + revision
          + "' (looked under " + cache.folder() + "); download it once while online, or set HF_HOME or HF_HUB_CACHE to"
          + " a cache that has it", cause);
    }
    if (cause != null) {
      LOGGER.log(System.Logger.Level.WARNING, "{0}; using the cached snapshot {1} of {2}", why, commit, repoId);
    }
    return cache.snapshot(commit);
  }

  /** The first file without which the snapshot cannot be loaded, or null. */
  private static String missingFile(Path snapshot) throws IOException {
    if (!Files.isRegularFile(snapshot.resolve(CONFIG))) {
      return CONFIG;
    }
    if (Files.isRegularFile(snapshot.resolve(SAFETENSORS)) || Files.isRegularFile(snapshot.resolve(TORCH))) {
      return null;
    }
    Path index = snapshot.resolve(SAFETENSORS_INDEX);
    if (!Files.isRegularFile(index)) {
      return SAFETENSORS;
    }
    for (String shard : readShardNames(index)) {
      if (!Files.isRegularFile(snapshot.resolve(shard))) {
        return shard;
      }
    }
    return null;
  }

  /** One repository at one commit on its way into the cache. */
  private record Download(
      HubClient client, HubCache cache, String repoId, HubClient.Listing listing, ProgressListener progress) {

    void run() throws IOException {
      Set<String> files = listing.files();
      fetch(require(CONFIG, "every model"));
      for (String name : SMALL_FILES) {
        if (files.contains(name)) {
          fetch(name);
        }
      }
      if (files.contains(SAFETENSORS)) {
        fetch(SAFETENSORS);
      } else if (files.contains(SAFETENSORS_INDEX)) {
        for (String shard : readShardNames(fetch(SAFETENSORS_INDEX))) {
          fetch(require(shard, SAFETENSORS_INDEX));
        }
      } else if (files.contains(TORCH)) {
        fetch(TORCH);
      } else {
        throw new HubException(repoId + " has no weights that can be read: expected " + SAFETENSORS + ", "
            + SAFETENSORS_INDEX + " or " + TORCH + " among its " + files.size() + " files");
      }
    }

    private String require(String name, String whoNeedsIt) throws HubException {
      if (!listing.files().contains(name)) {
        throw new HubException(repoId + " has no file " + name + ", which " + whoNeedsIt + " needs; is it a model?");
      }
      return name;
    }

    private Path fetch(String name) throws IOException {
      Path present = cache.snapshot(listing.commit()).resolve(name);
      if (Files.isRegularFile(present)) {
        return present;
      }
      RemoteFile file = client.lookUp(repoId, listing.commit(), name);
      return cache.locked(file.etag(), () -> {
        Path blob = cache.blob(file.etag());
        if (!Files.isRegularFile(blob)) {
          Files.createDirectories(blob.getParent());
          Path incomplete = blob.resolveSibling(file.etag() + ".incomplete");
          checkSpace(file, incomplete);
          client.transfer(file, incomplete, progress);
          verify(file, incomplete);
          Files.move(incomplete, blob, StandardCopyOption.ATOMIC_MOVE);
        }
        return cache.link(listing.commit(), name, file.etag());
      });
    }

    private static void checkSpace(RemoteFile file, Path incomplete) throws IOException {
      long present = Files.exists(incomplete) ? Files.size(incomplete) : 0;
      long free = Files.getFileStore(incomplete.getParent()).getUsableSpace();
      if (file.size() - present > free) {
        throw new IOException(file.name() + " of " + file.repoId() + " needs " + (file.size() - present) + " bytes, "
            + incomplete.getParent() + " has " + free + " free; set HF_HOME to a larger disk");
      }
    }
  }

  /** Large files are named by the SHA-256 of their bytes, small ones by git's SHA-1 of header and bytes. */
  private static void verify(RemoteFile file, Path path) throws IOException {
    String etag = file.etag();
    boolean sha256 = etag.matches("[0-9a-f]{64}");
    if (!sha256 && !etag.matches("[0-9a-f]{40}")) {
      LOGGER.log(System.Logger.Level.WARNING,
          "{0} of {1} came without a checksum (ETag {2}); only its size was checked", file.name(), file.repoId(), etag);
      return;
    }
    MessageDigest digest = messageDigest(sha256 ? "SHA-256" : "SHA-1");
    if (!sha256) {
      digest.update(("blob " + Files.size(path) + "\0").getBytes(StandardCharsets.US_ASCII));
    }
    try (InputStream in = Files.newInputStream(path)) {
      byte[] buffer = new byte[1 << 16];
      for (int n = in.read(buffer); n >= 0; n = in.read(buffer)) {
        digest.update(buffer, 0, n);
      }
    }
    String found = HexFormat.of().formatHex(digest.digest());
    if (!found.equals(etag)) {
      Files.delete(path);
      throw new HubException(file.name() + " of " + file.repoId() + " arrived damaged and was deleted: expected "
          + digest.getAlgorithm() + " " + etag + ", found " + found);
    }
  }

  private static MessageDigest messageDigest(String algorithm) {
    try {
      return MessageDigest.getInstance(algorithm);
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException("every Java platform has " + algorithm, e);
    }
  }

  private static Set<String> readShardNames(Path index) throws IOException {
    Set<String> shards = new TreeSet<>();
    try (InputStream in = Files.newInputStream(index); JsonParser parser = new JsonFactory().createParser(in)) {
      if (parser.nextToken() == JsonToken.START_OBJECT) {
        for (String field = parser.nextFieldName(); field != null; field = parser.nextFieldName()) {
          if (parser.nextToken() != JsonToken.START_OBJECT || !field.equals("weight_map")) {
            parser.skipChildren();
            continue;
          }
          while (parser.nextFieldName() != null && shards.size() <= MAX_SHARDS) {
            if (parser.nextToken() != JsonToken.VALUE_STRING) {
              throw new HubException(index + ": weight_map must map names to file names");
            }
            shards.add(HubCache.checkFileName(parser.getText(), index.toString()));
          }
        }
      }
    } catch (JsonProcessingException e) {
      throw new HubException(index + " is not valid JSON: " + e.getOriginalMessage(), e);
    }
    if (shards.isEmpty() || shards.size() > MAX_SHARDS) {
      throw new HubException(index + ": expected 1 to " + MAX_SHARDS + " shards in weight_map");
    }
    return shards;
  }
}

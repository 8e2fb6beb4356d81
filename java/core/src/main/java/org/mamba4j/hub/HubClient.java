package org.mamba4j.hub;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.JsonToken;
import java.io.IOException;
import java.io.InputStream;
import java.io.InterruptedIOException;
import java.io.OutputStream;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpTimeoutException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.time.Duration;
import java.util.HashSet;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import org.mamba4j.ProgressListener;

/** The hub's HTTP interface: list a repository, look up a file, transfer it. */
final class HubClient implements AutoCloseable {
  private static final int ATTEMPTS = 5;
  private static final int MAX_REDIRECTS = 5;
  private static final int MAX_LISTING_BYTES = 32 << 20;
  private static final long PROGRESS_THAT_FORGIVES = 1 << 20;
  private static final String USER_AGENT = "mamba4j; java/" + Runtime.version().feature();

  private final HubOptions options;
  private final HttpClient http;

  HubClient(HubOptions options) {
    this.options = options;
    this.http = HttpClient.newBuilder()
        .version(HttpClient.Version.HTTP_1_1)
        .followRedirects(HttpClient.Redirect.NEVER)
        .connectTimeout(options.timeout())
        .build();
  }

  @Override
  public void close() {
    http.shutdownNow();
    http.close();
  }

  /** What a revision holds. {@code files} are as the hub sent them: unchecked names. */
  record Listing(String commit, Set<String> files) {}

  /** @param size bytes, or -1 if the hub does not say */
  record RemoteFile(String repoId, String name, URI address, String etag, long size) {}

  Listing list(String repoId, String revision) throws IOException {
    URI address = address("/api/models/" + repoId + "/revision/" + URLEncoder.encode(revision, StandardCharsets.UTF_8));
    byte[] json = retrying(() -> {
      HttpResponse<InputStream> response = send("GET", address, true, "Accept", "application/json");
      try (InputStream body = new GuardedBody(response.body(), options.timeout())) {
        if (response.statusCode() != 200) {
          throw failure(response, repoId, "revision '" + revision + "'");
        }
        byte[] bytes = body.readNBytes(MAX_LISTING_BYTES + 1);
        if (bytes.length > MAX_LISTING_BYTES) {
          throw new HubException("the file list of " + repoId + " is longer than " + MAX_LISTING_BYTES + " bytes");
        }
        return bytes;
      }
    });
    return parseListing(json, repoId, address);
  }

  private static Listing parseListing(byte[] json, String repoId, URI address) throws HubException {
    String commit = null;
    Set<String> files = new HashSet<>();
    try (JsonParser parser = new JsonFactory().createParser(json)) {
      if (parser.nextToken() != JsonToken.START_OBJECT) {
        throw new HubException(address + " did not answer with a JSON object");
      }
      for (String field = parser.nextFieldName(); field != null; field = parser.nextFieldName()) {
        JsonToken value = parser.nextToken();
        if (field.equals("sha") && value == JsonToken.VALUE_STRING) {
          commit = parser.getText();
        } else if (field.equals("siblings") && value == JsonToken.START_ARRAY) {
          while (parser.nextToken() == JsonToken.START_OBJECT) {
            for (String key = parser.nextFieldName(); key != null; key = parser.nextFieldName()) {
              if (parser.nextToken() == JsonToken.VALUE_STRING && key.equals("rfilename")) {
                files.add(parser.getText());
              } else {
                parser.skipChildren();
              }
            }
          }
        } else {
          parser.skipChildren();
        }
      }
    } catch (JsonProcessingException e) {
      throw new HubException(address + " did not answer with valid JSON: " + e.getOriginalMessage(), e);
    } catch (HubException e) {
      throw e;
    } catch (IOException e) {
      throw new HubException(address + " did not answer with valid JSON", e);
    }
    return new Listing(HubCache.checkCommit(commit, repoId), files);
  }

  RemoteFile lookUp(String repoId, String commit, String name) throws IOException {
    URI address = address("/" + repoId + "/resolve/" + commit + "/" + name);
    return retrying(() -> {
      // Not followed to a storage host: the hub's own answer carries the checksum.
      HttpResponse<InputStream> response = send("HEAD", address, false, "Accept-Encoding", "identity");
      response.body().close();
      int status = response.statusCode();
      if (status != 200 && !isRedirect(status)) {
        throw failure(response, repoId, name);
      }
      String answered = header(response, "X-Repo-Commit");
      if (answered != null && !answered.equals(commit)) {
        throw new HubException("asked for " + name + " of " + repoId + " at commit " + commit
            + ", the hub answered for commit '" + answered + "'");
      }
      String etag = header(response, "X-Linked-Etag");
      if (etag == null) {
        etag = header(response, "ETag");
      }
      String size = header(response, "X-Linked-Size");
      if (size == null && status == 200) {
        size = header(response, "Content-Length");
      }
      return new RemoteFile(
          repoId, name, address, HubCache.checkEtag(unquoted(etag), name), parseSize(size, name));
    });
  }

  /** Completes {@code target}, which may hold the first part of the file already. */
  void transfer(RemoteFile file, Path target, ProgressListener progress) throws IOException {
    for (int failures = 0; ; ) {
      long before = Files.exists(target) ? Files.size(target) : 0;
      try {
        transferOnce(file, target, before, progress);
        return;
      } catch (HubException | InterruptedIOException final_) {
        throw final_;
      } catch (IOException broken) {
        long now = Files.exists(target) ? Files.size(target) : 0;
        failures = now - before >= PROGRESS_THAT_FORGIVES ? 1 : failures + 1;
        if (failures >= ATTEMPTS) {
          throw new IOException("the transfer of " + file.name() + " of " + file.repoId() + " broke off at byte " + now
              + " of " + file.size() + " (" + message(broken) + "); the next download resumes there", broken);
        }
        pause(failures);
      }
    }
  }

  private void transferOnce(RemoteFile file, Path target, long present, ProgressListener progress) throws IOException {
    if (present > 0 && present > file.size()) { // or of a file of unknown size, which begins anew
      Files.delete(target);
      present = 0;
    }
    if (present > 0 && present == file.size()) {
      return;
    }
    HttpResponse<InputStream> response = present == 0
        ? send("GET", file.address(), true, "Accept-Encoding", "identity")
        : send("GET", file.address(), true, "Accept-Encoding", "identity", "Range", "bytes=" + present + "-");
    try (InputStream body = new GuardedBody(response.body(), options.timeout())) {
      switch (response.statusCode()) {
        case 200 -> present = 0;
        case 206 -> checkContentRange(response, file, target, present);
        case 416 -> {
          Files.deleteIfExists(target);
          throw new IOException("the server cannot continue at byte " + present);
        }
        default -> throw failure(response, file.repoId(), file.name());
      }
      String encoding = header(response, "Content-Encoding");
      if (encoding != null && !encoding.equalsIgnoreCase("identity")) {
        throw new HubException(file.address() + " came encoded as '" + encoding + "', which was not asked for");
      }
      copy(body, file, target, present, progress);
    }
  }

  private static void checkContentRange(
      HttpResponse<InputStream> response, RemoteFile file, Path target, long present) throws IOException {
    String range = header(response, "Content-Range");
    String expected = "bytes " + present + "-" + (file.size() - 1) + "/" + file.size();
    if (present == 0 || range == null || !range.strip().equals(expected)) {
      Files.deleteIfExists(target);
      throw new IOException(
          "asked to continue " + file.name() + " with '" + expected + "', the server sent '" + range + "'");
    }
  }

  private static void copy(InputStream body, RemoteFile file, Path target, long present, ProgressListener progress)
      throws IOException {
    long done = present;
    byte[] buffer = new byte[1 << 16];
    try (OutputStream out = Files.newOutputStream(target, StandardOpenOption.CREATE, StandardOpenOption.WRITE,
            present == 0 ? StandardOpenOption.TRUNCATE_EXISTING : StandardOpenOption.APPEND)) {
      progress.progress(file.name(), done, file.size());
      for (int n = body.read(buffer); n >= 0; n = body.read(buffer)) {
        if (file.size() >= 0 && done + n > file.size()) {
          throw new HubException(file.address() + " sent more than the announced " + file.size() + " bytes");
        }
        out.write(buffer, 0, n);
        done += n;
        progress.progress(file.name(), done, file.size());
        if (Thread.currentThread().isInterrupted()) {
          throw new InterruptedIOException("interrupted while downloading " + file.name());
        }
      }
    }
    if (file.size() >= 0 && done < file.size()) {
      throw new IOException("the connection closed after " + done + " of " + file.size() + " bytes");
    }
  }

  /**
   * Sends a request and follows redirects. The token goes only to the endpoint, never to a host it redirects to, and
   * never from https to http.
   */
  private HttpResponse<InputStream> send(String method, URI start, boolean leaveEndpoint, String... headers)
      throws IOException {
    URI address = start;
    boolean atEndpoint = true;
    for (int hop = 0; hop <= MAX_REDIRECTS; hop++) {
      HttpRequest.Builder request = HttpRequest.newBuilder(address)
          .method(method, HttpRequest.BodyPublishers.noBody())
          .header("User-Agent", USER_AGENT)
          .headers(headers);
      if (atEndpoint && options.token() != null) {
        request.header("Authorization", "Bearer " + options.token());
      }
      HttpResponse<InputStream> response = answer(request.build());
      if (!isRedirect(response.statusCode())) {
        return response;
      }
      URI next = redirectTarget(address, header(response, "Location"));
      atEndpoint &= sameOrigin(options.endpoint(), next);
      response.body().close();
      if (!atEndpoint && !leaveEndpoint) {
        return response;
      }
      address = next;
    }
    throw new HubException(start + " redirects more than " + MAX_REDIRECTS + " times");
  }

  /** Waits for the headers alone: from JDK 26 on, a request's own timeout is for its whole body too. */
  private HttpResponse<InputStream> answer(HttpRequest request) throws IOException {
    var pending = http.sendAsync(request, HttpResponse.BodyHandlers.ofInputStream());
    try {
      return pending.get(options.timeout().toNanos(), TimeUnit.NANOSECONDS);
    } catch (TimeoutException e) {
      abandon(pending);
      throw noAnswer(request, e);
    } catch (ExecutionException e) {
      throw switch (e.getCause()) {
        case HttpTimeoutException connecting -> noAnswer(request, connecting);
        case IOException broken -> broken;
        case Throwable other -> new IOException(request.uri() + " could not be asked: " + other, other);
      };
    } catch (InterruptedException e) {
      abandon(pending);
      Thread.currentThread().interrupt();
      throw new InterruptedIOException("interrupted while waiting for " + request.uri());
    }
  }

  /** Ends an exchange, one that is answered at this very moment too. */
  private static void abandon(CompletableFuture<HttpResponse<InputStream>> pending) {
    if (!pending.cancel(true)) {
      pending.thenAccept(
          response -> {
            try {
              response.body().close();
            } catch (IOException e) {
              // nobody reads it
            }
          });
    }
  }

  private IOException noAnswer(HttpRequest request, Exception cause) {
    return new IOException(
        request.uri().getHost() + " did not answer within " + options.timeout().toMillis() + " ms", cause);
  }

  private static URI redirectTarget(URI from, String location) throws HubException {
    URI next;
    try {
      next = from.resolve(location == null ? "" : location);
    } catch (IllegalArgumentException e) {
      throw new HubException(from + " redirects to a malformed address", e);
    }
    boolean https = "https".equalsIgnoreCase(next.getScheme());
    boolean allowed = https || "http".equalsIgnoreCase(next.getScheme()) && "http".equalsIgnoreCase(from.getScheme());
    if (location == null || next.getHost() == null || !allowed) {
      throw new HubException(from + " redirects to '" + next.getScheme() + "://" + next.getHost()
          + "'; only https is followed (http only from http)");
    }
    return next;
  }

  private static boolean sameOrigin(URI a, URI b) {
    return a.getScheme().equalsIgnoreCase(b.getScheme())
        && a.getHost().equalsIgnoreCase(b.getHost())
        && port(a) == port(b);
  }

  private static int port(URI address) {
    if (address.getPort() >= 0) {
      return address.getPort();
    }
    return "https".equalsIgnoreCase(address.getScheme()) ? 443 : 80;
  }

  /** The exception for an unexpected status: {@link HubException} if trying again cannot help. */
  private IOException failure(HttpResponse<InputStream> response, String repoId, String what) {
    int status = response.statusCode();
    String server = response.uri().getHost();
    String code = header(response, "X-Error-Code");
    String subject = what + " of " + repoId;
    String tokenHint = options.token() == null
        ? "no access token is set: put one into HF_TOKEN"
        : "check that the access token in HF_TOKEN is valid and may read it";
    if ("GatedRepo".equals(code) || status == 403) {
      return new HubException(server + " answered " + status + " for " + subject
          + ": access is restricted; accept its terms at " + options.endpoint() + "/" + repoId
          + " and use a token of that account (" + tokenHint + ")");
    }
    return switch (status) {
      case 401 -> new HubException(server + " answered 401 for " + subject
          + ": the repository does not exist, or it is private (" + tokenHint + ")");
      case 404 -> new HubException(server + " answered 404: there is no " + subject
          + "; check the spelling, and HF_TOKEN if the repository is private");
      case 408, 425, 429 -> new IOException(server + " answered " + status + " for " + subject);
      default -> status >= 500
          ? new IOException(server + " answered " + status + " for " + subject)
          : new HubException(server + " answered " + status + " for " + subject + ", which was not expected");
    };
  }

  private <T> T retrying(HubCache.IoAction<T> action) throws IOException {
    for (int attempt = 1; ; attempt++) {
      try {
        return action.run();
      } catch (HubException | InterruptedIOException final_) {
        throw final_;
      } catch (IOException e) {
        if (attempt == ATTEMPTS) {
          throw e;
        }
        pause(attempt);
      }
    }
  }

  private void pause(int failures) throws InterruptedIOException {
    try {
      Thread.sleep(options.retryDelay().multipliedBy(1L << (failures - 1)));
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new InterruptedIOException("interrupted while waiting to try again");
    }
  }

  private URI address(String path) {
    return URI.create(options.endpoint().toString().replaceAll("/+$", "") + path);
  }

  private static boolean isRedirect(int status) {
    return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
  }

  private static String header(HttpResponse<?> response, String name) {
    return response.headers().firstValue(name).orElse(null);
  }

  private static String unquoted(String etag) {
    if (etag == null) {
      return null;
    }
    String strong = etag.startsWith("W/") ? etag.substring(2) : etag;
    return strong.length() >= 2 && strong.startsWith("\"") && strong.endsWith("\"")
        ? strong.substring(1, strong.length() - 1)
        : strong;
  }

  private static long parseSize(String size, String name) throws HubException {
    if (size == null) {
      return -1;
    }
    try {
      long bytes = Long.parseLong(size.strip());
      if (bytes >= 0) {
        return bytes;
      }
    } catch (NumberFormatException malformed) {
      // reported below, together with negative sizes
    }
    throw new HubException("the hub announced a size of '" + size + "' for " + name + "; expected a number of bytes");
  }

  static String message(Throwable e) {
    return e.getMessage() == null ? e.getClass().getSimpleName() : e.getMessage();
  }

  /** A body that is closed when it stays silent for too long, however long it may be in all. */
  private static final class GuardedBody extends InputStream {
    private final InputStream body;
    private final Duration timeout;
    private final Thread watcher;
    private volatile long lastSign = System.nanoTime();
    private volatile boolean stalled;

    GuardedBody(InputStream body, Duration timeout) {
      this.body = body;
      this.timeout = timeout;
      this.watcher = Thread.ofVirtual().name("mamba4j-hub-stall").start(this::watch);
    }

    private void watch() {
      try {
        for (long left = timeout.toNanos(); left > 0; left = timeout.toNanos() - (System.nanoTime() - lastSign)) {
          Thread.sleep(Duration.ofNanos(left));
        }
        stalled = true;
        body.close();
      } catch (InterruptedException | IOException ended) {
        // the transfer is over, or closing failed: its reader sees the end of the stream either way
      }
    }

    @Override
    public int read(byte[] buffer, int offset, int length) throws IOException {
      int n = -1;
      try {
        n = body.read(buffer, offset, length);
      } catch (IOException e) {
        if (!stalled) {
          throw e;
        }
      }
      if (n < 0 && stalled) {
        throw new IOException("no data for " + timeout.toMillis() + " ms");
      }
      lastSign = System.nanoTime();
      return n;
    }

    @Override
    public int read() throws IOException {
      byte[] one = new byte[1];
      return read(one, 0, 1) < 0 ? -1 : one[0] & 0xff;
    }

    @Override
    public void close() throws IOException {
      watcher.interrupt();
      body.close();
    }
  }
}

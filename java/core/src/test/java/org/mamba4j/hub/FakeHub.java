package org.mamba4j.hub;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.function.BooleanSupplier;
import java.util.function.Function;
import java.util.stream.Collectors;

/** A hub on loopback over plain sockets, so that it can break off, lie and stall as real networks do. */
final class FakeHub implements AutoCloseable {
  static final String REPO = "acme/tiny-mamba";
  static final String COMMIT = "0123456789abcdef0123456789abcdef01234567";

  record Request(String method, String path, Map<String, String> headers) {
    String header(String name) {
      return headers.get(name);
    }
  }

  /** {@code cutAfter}: body bytes after which the connection closes, {@code stallMillis} later; -1 sends all. */
  record Response(int status, Map<String, String> headers, byte[] body, long cutAfter, long stallMillis) {
    static Response of(int status, String... headers) {
      Map<String, String> map = new LinkedHashMap<>();
      for (int i = 0; i < headers.length; i += 2) {
        map.put(headers[i], headers[i + 1]);
      }
      return new Response(status, map, new byte[0], -1, 0);
    }

    Response with(byte[] newBody) {
      return new Response(status, headers, newBody, cutAfter, stallMillis);
    }

    Response cut(long bytes) {
      return new Response(status, headers, body, bytes, stallMillis);
    }

    Response stall(long millis) {
      return new Response(status, headers, body, cutAfter, millis);
    }
  }

  final Map<String, byte[]> files = new TreeMap<>();
  final List<Request> requests = new CopyOnWriteArrayList<>();

  /** Answers first; null leaves the request to the normal hub. */
  volatile Function<Request, Response> override = _ -> null;

  /**
   * Whether a connection that is to be cut may close now. A client may lose what it has received and not yet read when a
   * connection breaks; tests that count bytes wait for it.
   */
  volatile BooleanSupplier readyToCut = () -> true;

  /** Milliseconds before every eighth of a body. */
  volatile long slowness;

  private final ServerSocket socket;

  FakeHub() throws IOException {
    socket = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
    Thread.ofVirtual().start(() -> {
      while (!socket.isClosed()) {
        try {
          Socket client = socket.accept();
          Thread.ofVirtual().start(() -> serve(client));
        } catch (IOException closed) {
          return;
        }
      }
    });
  }

  URI address() {
    return URI.create("http://127.0.0.1:" + socket.getLocalPort());
  }

  List<String> seen(String method) {
    return requests.stream().filter(r -> r.method().equals(method)).map(Request::path).toList();
  }

  static String resolve(String file) {
    return "/" + REPO + "/resolve/" + COMMIT + "/" + file;
  }

  /** As the real hub names contents: SHA-256 for weights, git's blob SHA-1 for the rest. */
  static String etag(String name, byte[] content) {
    try {
      boolean large = name.endsWith(".safetensors") || name.endsWith(".bin");
      MessageDigest digest = MessageDigest.getInstance(large ? "SHA-256" : "SHA-1");
      if (!large) {
        digest.update(("blob " + content.length + "\0").getBytes(StandardCharsets.US_ASCII));
      }
      return HexFormat.of().formatHex(digest.digest(content));
    } catch (NoSuchAlgorithmException e) {
      throw new AssertionError(e);
    }
  }

  Response answer(Request request) {
    if (request.path().startsWith("/api/models/" + REPO + "/revision/")) {
      String siblings = files.keySet().stream()
          .map(name -> "{\"rfilename\": " + quote(name) + ", \"extra\": [1, {}]}")
          .collect(Collectors.joining(","));
      String json = "{\"id\": \"" + REPO + "\", \"tags\": [\"a\", {\"b\": []}], \"sha\": \"" + COMMIT
          + "\", \"siblings\": [" + siblings + "]}";
      return Response.of(200, "Content-Type", "application/json").with(json.getBytes(StandardCharsets.UTF_8));
    }
    String prefix = resolve("");
    byte[] content = request.path().startsWith(prefix) ? files.get(request.path().substring(prefix.length())) : null;
    if (content == null) {
      return Response.of(404, "X-Error-Code", "EntryNotFound");
    }
    return file(request, request.path().substring(prefix.length()), content);
  }

  static Response file(Request request, String name, byte[] content) {
    String etag = etag(name, content);
    Response whole = Response.of(200, "X-Repo-Commit", COMMIT, "ETag", "\"" + etag + "\"").with(content);
    String range = request.header("range");
    if (range == null) {
      return whole;
    }
    int from = Integer.parseInt(range.replaceAll("bytes=(\\d+)-", "$1"));
    return Response.of(206, "Content-Range", "bytes " + from + "-" + (content.length - 1) + "/" + content.length)
        .with(Arrays.copyOfRange(content, from, content.length));
  }

  static String quote(String text) {
    StringBuilder out = new StringBuilder("\"");
    text.chars().forEach(c -> out.append(c < ' ' || c == '"' || c == '\\' ? "\\u%04x".formatted(c) : String.valueOf((char) c)));
    return out.append('"').toString();
  }

  private void serve(Socket client) {
    try (client) {
      BufferedReader in = new BufferedReader(new InputStreamReader(client.getInputStream(), StandardCharsets.ISO_8859_1));
      for (String line = in.readLine(); line != null; line = in.readLine()) {
        String[] parts = line.split(" ");
        Map<String, String> headers = new TreeMap<>();
        for (String header = in.readLine(); header != null && !header.isEmpty(); header = in.readLine()) {
          int colon = header.indexOf(':');
          headers.put(header.substring(0, colon).toLowerCase(Locale.ROOT), header.substring(colon + 1).strip());
        }
        Request request = new Request(parts[0], parts[1], headers);
        requests.add(request);
        Response response = override.apply(request);
        if (response == null) {
          response = answer(request);
        }
        if (!send(request, response, client.getOutputStream())) {
          return;
        }
      }
    } catch (IOException | InterruptedException gone) {
      // the client hung up
    }
  }

  private boolean send(Request request, Response response, OutputStream out)
      throws IOException, InterruptedException {
    StringBuilder text = new StringBuilder("HTTP/1.1 " + response.status() + " x\r\n");
    response.headers().forEach((name, value) -> text.append(name).append(": ").append(value).append("\r\n"));
    text.append("Content-Length: ").append(response.body().length).append("\r\n\r\n");
    out.write(text.toString().getBytes(StandardCharsets.ISO_8859_1));
    if (!request.method().equals("HEAD")) {
      int n = response.cutAfter() < 0 ? response.body().length : (int) Math.min(response.cutAfter(), response.body().length);
      for (int i = 0; i < 8; i++) {
        Thread.sleep(slowness);
        out.write(response.body(), n / 8 * i, i < 7 ? n / 8 : n - n / 8 * 7);
      }
    }
    out.flush();
    Thread.sleep(response.stallMillis());
    if (response.cutAfter() < 0 || request.method().equals("HEAD")) {
      return true;
    }
    for (int i = 0; i < 2000 && !readyToCut.getAsBoolean(); i++) {
      Thread.sleep(5);
    }
    return false;
  }

  @Override
  public void close() throws IOException {
    socket.close();
  }
}

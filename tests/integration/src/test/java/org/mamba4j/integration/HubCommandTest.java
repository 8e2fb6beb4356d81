package org.mamba4j.integration;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The command with the id of a model: a hub on loopback offers the bundled one. */
class HubCommandTest {
  private static final String ID = "acme/java-9m";
  private static final String COMMIT = "0123456789abcdef0123456789abcdef01234567";
  private static final List<String> FILES =
      List.of("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors");

  @TempDir Path temp;
  private HttpServer server;
  private Map<String, String> environment;

  @BeforeEach
  void start() throws IOException {
    server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
    server.createContext("/api/models/" + ID, this::list);
    server.createContext("/" + ID + "/resolve/" + COMMIT + "/", this::send);
    server.start();
    environment =
        Map.of("HF_ENDPOINT", "http://127.0.0.1:" + server.getAddress().getPort(), "HF_HOME", temp.toString());
  }

  @AfterEach
  void stop() {
    server.stop(0);
  }

  @Test
  void downloadsShowsHowFarItIsAndKeepsTheModel() throws Exception {
    String[] args = {"generate", "--model", ID, "--prompt", DemoModelTest.PROMPT, "--max-new-tokens", "20", "--json"};
    JavaProcess.Result result = JavaProcess.command(environment, args).finish();
    assertEquals(0, result.code(), result.err());
    assertTrue(result.err().matches("model\\.safetensors: 18\\.4 MB of 18\\.4 MB, .* MB/s\\R"), result.err());
    assertDemo(result.out());

    server.stop(0);
    JavaProcess.Result again = JavaProcess.command(offline(), args).finish();
    assertEquals(0, again.code(), again.err());
    assertDemo(again.out());
  }

  @Test
  void anUnknownIdIsAnErrorInOneLine() throws Exception {
    JavaProcess.Result result = JavaProcess.command(environment, "inspect", "--model", "acme/nothing").finish();
    assertEquals(1, result.code());
    assertEquals("", result.out());
    assertEquals(1, result.err().lines().count(), result.err());
    assertTrue(result.err().startsWith("mamba4j: there is no folder 'acme/nothing'"), result.err());
  }

  private Map<String, String> offline() {
    return Map.of("HF_HUB_OFFLINE", "1", "HF_HOME", temp.toString());
  }

  private static void assertDemo(String out) throws IOException {
    assertEquals(Arrays.stream(DemoModelTest.CONTINUATION).boxed().toList(), JSON.std.mapFrom(out).get("tokens"));
  }

  private void list(HttpExchange exchange) throws IOException {
    String siblings = FILES.stream().map("{\"rfilename\": \"%s\"}"::formatted).collect(Collectors.joining(","));
    byte[] body = "{\"sha\": \"%s\", \"siblings\": [%s]}".formatted(COMMIT, siblings).getBytes(StandardCharsets.UTF_8);
    try (exchange) {
      exchange.sendResponseHeaders(200, body.length);
      exchange.getResponseBody().write(body);
    }
  }

  private void send(HttpExchange exchange) throws IOException {
    Path file = Goldens.DEMO_MODEL.resolve(Path.of(exchange.getRequestURI().getPath()).getFileName());
    byte[] content = Files.readAllBytes(file);
    try (exchange) {
      exchange.getResponseHeaders().set("X-Repo-Commit", COMMIT);
      exchange.getResponseHeaders().set("ETag", '"' + etag(file, content) + '"');
      boolean head = exchange.getRequestMethod().equals("HEAD");
      if (head) {
        exchange.getResponseHeaders().set("Content-Length", Integer.toString(content.length));
      }
      exchange.sendResponseHeaders(200, head ? -1 : content.length);
      if (!head) {
        sendSlowly(exchange.getResponseBody(), content);
      }
    }
  }

  /** Large files take about a second. */
  private static void sendSlowly(OutputStream out, byte[] content) throws IOException {
    int step = 2 << 20;
    for (int from = 0; from < content.length; from += step) {
      out.write(content, from, Math.min(step, content.length - from));
      if (content.length > step) {
        out.flush();
        try {
          Thread.sleep(100);
        } catch (InterruptedException e) {
          Thread.currentThread().interrupt();
        }
      }
    }
  }

  /** SHA-256 of weights, git's name of everything else. */
  private static String etag(Path file, byte[] content) {
    try {
      boolean weights = file.toString().endsWith(".safetensors");
      MessageDigest digest = MessageDigest.getInstance(weights ? "SHA-256" : "SHA-1");
      if (!weights) {
        digest.update(("blob " + content.length + "\0").getBytes(StandardCharsets.US_ASCII));
      }
      return HexFormat.of().formatHex(digest.digest(content));
    } catch (NoSuchAlgorithmException e) {
      throw new AssertionError(e);
    }
  }
}

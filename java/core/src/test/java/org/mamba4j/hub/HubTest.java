package org.mamba4j.hub;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.mamba4j.hub.FakeHub.COMMIT;
import static org.mamba4j.hub.FakeHub.REPO;

import java.io.IOException;
import java.io.InterruptedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.mamba4j.ProgressListener;
import org.mamba4j.hub.FakeHub.Response;

@Timeout(60)
class HubTest {
  private static final ProgressListener SILENT = (_, _, _) -> {};
  private static final byte[] WEIGHTS = random(300_000);

  @TempDir Path home;
  private FakeHub hub;

  @BeforeEach
  void startHub() throws IOException {
    hub = new FakeHub();
    hub.files.put("config.json", "{\"model_type\": \"mamba2\"}".getBytes(UTF_8));
    hub.files.put("tokenizer.json", "{}".getBytes(UTF_8));
    hub.files.put("model.safetensors", WEIGHTS);
    hub.files.put("README.md", "not needed".getBytes(UTF_8));
    hub.files.put("pytorch_model.bin", new byte[] {1});
  }

  @AfterEach
  void stopHub() throws IOException {
    hub.close();
  }

  private static byte[] random(int size) {
    byte[] bytes = new byte[size];
    new Random(7).nextBytes(bytes);
    return bytes;
  }

  private Path cache() {
    return home.resolve("hub");
  }

  /** What a transfer of the weights has stored so far. */
  private Path incomplete() {
    return repoFolder().resolve("blobs").resolve(FakeHub.etag("model.safetensors", WEIGHTS) + ".incomplete");
  }

  private Path repoFolder() {
    return cache().resolve("models--acme--tiny-mamba");
  }

  private HubOptions options(String token, boolean offline) {
    return new HubOptions(hub.address(), cache(), token, offline, Duration.ofSeconds(20), Duration.ofMillis(1));
  }

  private Path download() throws IOException {
    return new Hub(options(null, false)).download(REPO, "main", SILENT);
  }

  private List<Path> everything() throws IOException {
    try (Stream<Path> all = Files.walk(home)) {
      return all.filter(Files::isRegularFile).toList();
    }
  }

  @Test
  void downloadsOnlyWhatAModelNeedsInTheSharedLayout() throws IOException {
    Map<String, Long> progress = new HashMap<>();
    Path snapshot = new Hub(options(null, false)).download(REPO, "main", (what, done, total) -> {
      assertTrue(done <= total);
      progress.put(what, done);
    });

    assertEquals(repoFolder().resolve("snapshots").resolve(COMMIT), snapshot);
    assertArrayEquals(WEIGHTS, Files.readAllBytes(snapshot.resolve("model.safetensors")));
    assertEquals(COMMIT, Files.readString(repoFolder().resolve("refs/main")));
    Path link = snapshot.resolve("model.safetensors");
    assertEquals(
        Path.of("../../blobs", FakeHub.etag("model.safetensors", WEIGHTS)), Files.readSymbolicLink(link));
    try (Stream<Path> names = Files.list(snapshot)) {
      assertEquals(List.of("config.json", "model.safetensors", "tokenizer.json"),
          names.map(p -> p.getFileName().toString()).sorted().toList());
    }
    try (Stream<Path> blobs = Files.list(repoFolder().resolve("blobs"))) {
      assertEquals(3, blobs.count());
    }
    assertEquals(Map.of("config.json", 24L, "tokenizer.json", 2L, "model.safetensors", 300_000L), progress);
  }

  @Test
  void aSecondDownloadTransfersNothing() throws IOException {
    Path first = download();
    hub.requests.clear();
    assertEquals(first, download());
    assertEquals(1, hub.requests.size());
    assertTrue(hub.requests.getFirst().path().startsWith("/api/models/"));
  }

  @Test
  void contentsSharedByTwoCommitsAreTransferredOnce() throws IOException {
    download();
    Path snapshot = repoFolder().resolve("snapshots").resolve(COMMIT);
    Files.delete(snapshot.resolve("model.safetensors"));
    hub.requests.clear();
    assertArrayEquals(WEIGHTS, Files.readAllBytes(download().resolve("model.safetensors")));
    assertEquals(List.of(FakeHub.resolve("model.safetensors")), hub.seen("HEAD"));
    assertEquals(1, hub.seen("GET").size(), "only the listing");
  }

  @Test
  void resumesABrokenTransfer() throws IOException {
    AtomicInteger cuts = new AtomicInteger();
    hub.readyToCut = () -> incomplete().toFile().length() == 100_000 * cuts.get();
    hub.override = request -> {
      if (request.method().equals("GET") && request.path().endsWith("model.safetensors") && cuts.getAndIncrement() < 2) {
        return FakeHub.file(request, "model.safetensors", WEIGHTS).cut(100_000);
      }
      return null;
    };
    assertArrayEquals(WEIGHTS, Files.readAllBytes(download().resolve("model.safetensors")));
    List<String> ranges = hub.requests.stream()
        .filter(r -> r.method().equals("GET") && r.path().endsWith("model.safetensors"))
        .map(r -> String.valueOf(r.header("range")))
        .toList();
    assertEquals(List.of("null", "bytes=100000-", "bytes=200000-"), ranges);
  }

  @Test
  void aLaterDownloadResumesWhatAnEarlierOneLeft() throws IOException {
    Path incomplete = incomplete();
    hub.readyToCut = () -> incomplete.toFile().length() == 123_456;
    hub.override = request -> request.method().equals("GET") && request.path().endsWith("model.safetensors")
        ? (request.header("range") == null
            ? FakeHub.file(request, "model.safetensors", WEIGHTS).cut(123_456)
            : Response.of(503))
        : null;
    IOException broken = assertThrows(IOException.class, this::download);
    assertTrue(broken.getMessage().contains("123456"), broken.getMessage());
    assertEquals(123_456, Files.size(incomplete));

    hub.requests.clear();
    hub.override = _ -> null;
    assertArrayEquals(WEIGHTS, Files.readAllBytes(download().resolve("model.safetensors")));
    assertTrue(hub.requests.stream().anyMatch(r -> "bytes=123456-".equals(r.header("range"))));
    assertFalse(Files.exists(incomplete));
  }

  @Test
  void startsAgainWhenTheServerIgnoresRange() throws IOException {
    AtomicInteger gets = new AtomicInteger();
    hub.override = request -> {
      if (!request.method().equals("GET") || !request.path().endsWith("model.safetensors")) {
        return null;
      }
      Response whole = Response.of(200).with(WEIGHTS);
      return gets.getAndIncrement() == 0 ? whole.cut(100_000) : whole;
    };
    assertArrayEquals(WEIGHTS, Files.readAllBytes(download().resolve("model.safetensors")));
    assertEquals(2, gets.get());
  }

  @Test
  void startsAgainWhenTheServerContinuesAtAnotherByte() throws IOException {
    AtomicInteger gets = new AtomicInteger();
    hub.override = request -> {
      if (!request.method().equals("GET") || !request.path().endsWith("model.safetensors")) {
        return null;
      }
      return switch (gets.getAndIncrement()) {
        case 0 -> Response.of(200).with(WEIGHTS).cut(100_000);
        case 1 -> Response.of(206, "Content-Range", "bytes 0-299999/300000").with(WEIGHTS);
        default -> null;
      };
    };
    assertArrayEquals(WEIGHTS, Files.readAllBytes(download().resolve("model.safetensors")));
    assertNull(hub.requests.getLast().header("range"));
  }

  @ParameterizedTest
  @ValueSource(strings = {"model.safetensors", "config.json"})
  void refusesAndDeletesDamagedContents(String name) throws IOException {
    byte[] damaged = hub.files.get(name).clone();
    damaged[damaged.length / 2] ^= 1;
    hub.override = request ->
        request.method().equals("GET") && request.path().endsWith(name) ? Response.of(200).with(damaged) : null;
    HubException e = assertThrows(HubException.class, this::download);
    assertTrue(e.getMessage().contains(name) && e.getMessage().contains("SHA-"), e.getMessage());
    String etag = FakeHub.etag(name, hub.files.get(name));
    assertFalse(Files.exists(repoFolder().resolve("blobs").resolve(etag)));
    assertFalse(Files.exists(repoFolder().resolve("blobs").resolve(etag + ".incomplete")));
    assertFalse(Files.exists(repoFolder().resolve("snapshots").resolve(COMMIT).resolve(name)));
  }

  @Test
  void refusesMoreBytesThanAnnounced() {
    hub.override = request -> request.method().equals("GET") && request.path().endsWith("config.json")
        ? Response.of(200).with(new byte[1000])
        : null;
    HubException e = assertThrows(HubException.class, this::download);
    assertTrue(e.getMessage().contains("more than the announced 24 bytes"), e.getMessage());
  }

  @Test
  void explainsRefusals() {
    Map<Response, List<String>> cases = Map.of(
        Response.of(401), List.of("401", "does not exist", "private", "HF_TOKEN"),
        Response.of(403), List.of("403", "accept its terms", REPO),
        Response.of(401, "X-Error-Code", "GatedRepo"), List.of("restricted", "accept its terms"),
        Response.of(404), List.of("404", "'main'", REPO),
        Response.of(418), List.of("418"));
    cases.forEach((response, words) -> {
      hub.override = _ -> response;
      hub.requests.clear();
      HubException e = assertThrows(HubException.class, this::download);
      words.forEach(word -> assertTrue(e.getMessage().contains(word), e.getMessage()));
      assertEquals(1, hub.requests.size(), "no retry");
    });
  }

  @Test
  void retriesServerErrors() throws IOException {
    AtomicInteger failures = new AtomicInteger();
    hub.override = _ -> failures.getAndIncrement() < 3 ? Response.of(503) : null;
    assertArrayEquals(WEIGHTS, Files.readAllBytes(download().resolve("model.safetensors")));
  }

  @Test
  void theTokenStaysWithTheEndpoint() throws IOException {
    try (FakeHub storage = new FakeHub()) {
      storage.override = request -> request.path().equals("/blob")
          ? FakeHub.file(request, "model.safetensors", WEIGHTS)
          : Response.of(404);
      hub.override = request -> request.path().endsWith("model.safetensors")
          ? Response.of(302,
              "Location", storage.address() + "/blob",
              "X-Linked-Etag", "\"" + FakeHub.etag("model.safetensors", WEIGHTS) + "\"",
              "X-Linked-Size", "300000",
              "X-Repo-Commit", COMMIT)
          : null;
      Path snapshot = new Hub(options("hf_secret", false)).download(REPO, "main", SILENT);
      assertArrayEquals(WEIGHTS, Files.readAllBytes(snapshot.resolve("model.safetensors")));
      assertEquals(List.of("/blob"), storage.seen("GET"));
      assertEquals(List.of(), storage.seen("HEAD"));
      assertTrue(storage.requests.stream().allMatch(r -> r.header("authorization") == null));
      assertTrue(hub.requests.stream().allMatch(r -> "Bearer hf_secret".equals(r.header("authorization"))));
    }
  }

  @Test
  void followsRedirectsInsideTheEndpointWithTheToken() throws IOException {
    hub.override = request -> {
      if (request.path().startsWith("/renamed/")) {
        return FakeHub.file(request, "config.json", hub.files.get("config.json"));
      }
      return request.path().endsWith("config.json") ? Response.of(307, "Location", "/renamed" + request.path()) : null;
    };
    Path snapshot = new Hub(options("hf_secret", false)).download(REPO, "main", SILENT);
    assertEquals(24, Files.size(snapshot.resolve("config.json")));
    assertTrue(hub.requests.stream().allMatch(r -> "Bearer hf_secret".equals(r.header("authorization"))));
  }

  @Test
  void refusesRedirectsToOtherSchemesAndEndlessOnes() {
    hub.override = request -> request.path().startsWith("/api/") ? Response.of(302, "Location", "file:///etc/passwd") : null;
    HubException scheme = assertThrows(HubException.class, this::download);
    assertTrue(scheme.getMessage().contains("only https"), scheme.getMessage());
    hub.override = request -> Response.of(302, "Location", request.path());
    HubException endless = assertThrows(HubException.class, this::download);
    assertTrue(endless.getMessage().contains("more than 5 times"), endless.getMessage());
  }

  @Test
  void offlineUsesTheCacheAndNothingElse() throws IOException {
    Hub offline = new Hub(options(null, true));
    IOException e = assertThrows(IOException.class, () -> offline.download(REPO, "main", SILENT));
    assertTrue(e.getMessage().contains("HF_HUB_OFFLINE") && e.getMessage().contains(REPO), e.getMessage());
    assertEquals(0, hub.requests.size());

    Path snapshot = download();
    hub.requests.clear();
    assertEquals(snapshot, offline.download(REPO, "main", SILENT));
    assertEquals(snapshot, offline.download(REPO, COMMIT, SILENT));
    assertEquals(0, hub.requests.size());

    Files.delete(snapshot.resolve("model.safetensors"));
    IOException incomplete = assertThrows(IOException.class, () -> offline.download(REPO, "main", SILENT));
    assertTrue(incomplete.getMessage().contains("model.safetensors"), incomplete.getMessage());
  }

  @Test
  void anUnreachableHubFallsBackOnTheCache() throws IOException {
    Path snapshot = download();
    hub.close();
    assertEquals(snapshot, download());
    IOException e = assertThrows(IOException.class,
        () -> new Hub(options(null, false)).download("acme/other", "main", SILENT));
    assertTrue(e.getMessage().contains("cannot be reached") && e.getMessage().contains("acme/other"), e.getMessage());
  }

  @Test
  void aTransferMayTakeLongerThanTheTimeout() throws IOException {
    HubOptions impatient =
        new HubOptions(hub.address(), cache(), null, false, Duration.ofSeconds(1), Duration.ofMillis(1));
    hub.slowness = 150;
    hub.files.keySet().retainAll(Set.of("config.json", "model.safetensors"));
    Path snapshot = new Hub(impatient).download(REPO, "main", SILENT);
    assertArrayEquals(WEIGHTS, Files.readAllBytes(snapshot.resolve("model.safetensors")));
    assertEquals(List.of(FakeHub.resolve("config.json"), FakeHub.resolve("model.safetensors")),
        hub.seen("GET").stream().filter(path -> path.contains("/resolve/")).sorted().toList());
  }

  @ParameterizedTest
  @ValueSource(longs = {0, 100_000})
  void aSilentServerIsNotWaitedForForever(long bytesBeforeSilence) {
    HubOptions impatient =
        new HubOptions(hub.address(), cache(), null, false, Duration.ofMillis(500), Duration.ofMillis(1));
    hub.override = request -> request.path().endsWith("model.safetensors") && request.method().equals("GET")
        ? FakeHub.file(request, "model.safetensors", WEIGHTS)
            .cut(request.header("range") == null ? bytesBeforeSilence : 0)
            .stall(30_000)
        : null;
    IOException e = assertThrows(IOException.class, () -> new Hub(impatient).download(REPO, "main", SILENT));
    assertTrue(e.getMessage().contains("no data for 500 ms"), e.getMessage());
  }

  @Test
  void shardsComeFromTheIndex() throws IOException {
    hub.files.remove("model.safetensors");
    hub.files.put("model-00001-of-00002.safetensors", random(1000));
    hub.files.put("model-00002-of-00002.safetensors", random(2000));
    hub.files.put("model-unused.safetensors", random(10));
    hub.files.put("model.safetensors.index.json", """
        {"metadata": {"total_size": 3000, "x": [{}]}, "weight_map": {
          "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors",
          "c": "model-00001-of-00002.safetensors"}}""".getBytes(UTF_8));
    Path snapshot = download();
    assertArrayEquals(random(1000), Files.readAllBytes(snapshot.resolve("model-00001-of-00002.safetensors")));
    assertArrayEquals(random(2000), Files.readAllBytes(snapshot.resolve("model-00002-of-00002.safetensors")));
    assertFalse(Files.exists(snapshot.resolve("model-unused.safetensors")));
    assertFalse(Files.exists(snapshot.resolve("pytorch_model.bin")));
    assertEquals(snapshot, new Hub(options(null, true)).download(REPO, "main", SILENT));
  }

  @Test
  void theOriginalLayoutIsTheLastChoice() throws IOException {
    hub.files.remove("model.safetensors");
    assertTrue(Files.exists(download().resolve("pytorch_model.bin")));
    hub.files.remove("pytorch_model.bin");
    HubException e = assertThrows(HubException.class, this::download);
    assertTrue(e.getMessage().contains("no weights"), e.getMessage());
  }

  @ParameterizedTest
  @ValueSource(strings = {
    "../../../../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:evil", "nul\0name", "a//b", ".", "..", "", ".hidden", "a\nb"
  })
  void hostileShardNamesWriteNothingOutside(String name) throws IOException {
    hub.files.remove("model.safetensors");
    hub.files.put(name, new byte[10]);
    hub.files.put("model.safetensors.index.json",
        ("{\"weight_map\": {\"a\": " + FakeHub.quote(name) + "}}").getBytes(UTF_8));
    HubException e = assertThrows(HubException.class, this::download);
    assertTrue(e.getMessage().contains("names the file"), e.getMessage());
    assertTrue(everything().stream().allMatch(p -> p.startsWith(cache())));
    assertFalse(Files.exists(home.resolve("evil")));
  }

  @ParameterizedTest
  @ValueSource(strings = {"../../../../evil", "/tmp/evil", "a/b", "..", "a b", "x.incomplete"})
  void hostileEtagsWriteNothing(String etag) throws IOException {
    hub.override = request ->
        request.method().equals("HEAD") ? Response.of(200, "ETag", "\"" + etag + "\"", "X-Repo-Commit", COMMIT) : null;
    HubException e = assertThrows(HubException.class, this::download);
    assertTrue(e.getMessage().contains("ETag"), e.getMessage());
    assertEquals(List.of(), everything());
  }

  @ParameterizedTest
  @ValueSource(strings = {
    "{\"sha\": \"../../evil\", \"siblings\": []}", "{\"siblings\": []}", "[]", "", "{\"sha\": 1}", "{\"sha\": \"", "<html>"
  })
  void hostileListingsWriteNothing(String json) throws IOException {
    hub.override = _ -> Response.of(200).with(json.getBytes(UTF_8));
    assertThrows(HubException.class, this::download);
    assertEquals(List.of(), everything());
  }

  @Test
  void anAnswerForAnotherCommitIsRefused() {
    hub.override = request -> request.method().equals("HEAD")
        ? Response.of(200, "ETag", "\"abc\"", "X-Repo-Commit", "f".repeat(40))
        : null;
    HubException e = assertThrows(HubException.class, this::download);
    assertTrue(e.getMessage().contains("f".repeat(40)), e.getMessage());
  }

  @ParameterizedTest
  @ValueSource(strings = {"", "a/b/c", "../x", "/etc/passwd", "a/..", "a--b/c", "a b", "a/b.", "-a/b", "a\\b", "a/b\0", "a/é"})
  void malformedRepositoryIdsAreRefusedBeforeAnyRequest(String repoId) {
    assertThrows(IllegalArgumentException.class, () -> new Hub(options(null, false)).download(repoId, "main", SILENT));
    assertEquals(0, hub.requests.size());
  }

  @ParameterizedTest
  @ValueSource(strings = {"", "..", "../../x", "/x", "a//b", "a b", "x\n", "refs/../../x"})
  void malformedRevisionsAreRefusedBeforeAnyRequest(String revision) {
    assertThrows(IllegalArgumentException.class, () -> new Hub(options(null, false)).download(REPO, revision, SILENT));
    assertEquals(0, hub.requests.size());
  }

  @Test
  void revisionsMayHaveSlashes() throws IOException {
    Path snapshot = new Hub(options(null, false)).download(REPO, "refs/pr/1", SILENT);
    assertTrue(hub.requests.getFirst().path().endsWith("/revision/refs%2Fpr%2F1"));
    assertEquals(COMMIT, Files.readString(repoFolder().resolve("refs/refs/pr/1")));
    assertEquals(snapshot, new Hub(options(null, true)).download(REPO, "refs/pr/1", SILENT));
  }

  @Test
  void concurrentDownloadsShareOneTransfer() throws Exception {
    try (var executor = Executors.newVirtualThreadPerTaskExecutor()) {
      List<Callable<Path>> tasks = new ArrayList<>();
      for (int i = 0; i < 8; i++) {
        tasks.add(this::download);
      }
      for (Future<Path> result : executor.invokeAll(tasks)) {
        assertArrayEquals(WEIGHTS, Files.readAllBytes(result.get().resolve("model.safetensors")));
      }
    }
    assertEquals(1, hub.seen("GET").stream().filter(p -> p.endsWith("model.safetensors")).count());
  }

  @Test
  void waitsForAnotherProcessThatWritesTheSameFile() throws Exception {
    String etag = FakeHub.etag("model.safetensors", WEIGHTS);
    Path lock = cache().resolve(".locks/models--acme--tiny-mamba").resolve(etag + ".lock");
    Files.createDirectories(lock.getParent());
    Path program = Files.writeString(home.resolve("Holder.java"), """
        void main(String[] args) throws Exception {
          try (var file = new java.io.RandomAccessFile(args[0], "rw"); var lock = file.getChannel().lock()) {
            System.out.println("locked");
            System.in.read();
          }
        }
        """);
    Process holder = new ProcessBuilder(
            Path.of(System.getProperty("java.home"), "bin", "java").toString(), program.toString(), lock.toString())
        .redirectError(ProcessBuilder.Redirect.INHERIT)
        .start();
    try (var executor = Executors.newVirtualThreadPerTaskExecutor()) {
      assertEquals("locked", holder.inputReader().readLine());
      Future<Path> waiting = executor.submit(this::download);
      assertThrows(TimeoutException.class, () -> waiting.get(500, TimeUnit.MILLISECONDS));
      assertFalse(hub.seen("GET").contains(FakeHub.resolve("model.safetensors")));
      holder.getOutputStream().close();
      assertArrayEquals(WEIGHTS, Files.readAllBytes(waiting.get().resolve("model.safetensors")));
    } finally {
      holder.destroyForcibly().waitFor();
    }
  }

  @Test
  void interruptionEndsADownload() {
    Thread thread = Thread.currentThread();
    Hub patient = new Hub(options(null, false));
    assertThrows(InterruptedIOException.class,
        () -> patient.download(REPO, "main", (_, _, _) -> thread.interrupt()));
    assertTrue(Thread.interrupted(), "the flag stays set");
  }

  @Test
  void readsThePythonClientsEnvironment() throws IOException {
    HubOptions defaults = HubOptions.fromEnvironment(Map.of(), home);
    assertEquals(home.resolve(".cache/huggingface/hub"), defaults.cacheFolder());
    assertEquals(HubOptions.DEFAULT_ENDPOINT, defaults.endpoint());
    assertNull(defaults.token());
    assertFalse(defaults.offline());

    Path hfHome = Files.createDirectories(home.resolve("hf"));
    Files.writeString(hfHome.resolve("token"), "hf_file\n");
    HubOptions set = HubOptions.fromEnvironment(
        Map.of("HF_HOME", "~/hf", "HF_ENDPOINT", "http://localhost:1/", "HF_HUB_OFFLINE", "True"), home);
    assertEquals(hfHome.resolve("hub"), set.cacheFolder());
    assertEquals("http://localhost:1", set.endpoint().toString());
    assertEquals("hf_file", set.token());
    assertTrue(set.offline());
    assertFalse(set.toString().contains("hf_file"));

    HubOptions overridden = HubOptions.fromEnvironment(
        Map.of("HF_HOME", hfHome.toString(), "HF_TOKEN", " hf_env ", "HF_HUB_CACHE", "/elsewhere"), home);
    assertEquals("hf_env", overridden.token());
    assertEquals(Path.of("/elsewhere"), overridden.cacheFolder());
    assertEquals(Path.of("/legacy"),
        HubOptions.fromEnvironment(Map.of("HUGGINGFACE_HUB_CACHE", "/legacy"), home).cacheFolder());
    Path tokenFile = Files.writeString(home.resolve("t"), "hf_path");
    assertEquals("hf_path", HubOptions.fromEnvironment(Map.of("HF_TOKEN_PATH", tokenFile.toString()), home).token());
    for (String bad : List.of("ftp://x", "nonsense", "http://", "http://a b")) {
      assertThrows(IllegalArgumentException.class,
          () -> HubOptions.fromEnvironment(Map.of("HF_ENDPOINT", bad), home), bad);
    }
    assertThrows(IllegalArgumentException.class,
        () -> HubOptions.fromEnvironment(Map.of("HF_TOKEN", "two words"), home));
  }
}

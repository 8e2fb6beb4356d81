package org.mamba4j.hub;

import java.io.IOException;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Locale;
import java.util.Map;
import java.util.Objects;
import java.util.Set;

/**
 * Where models come from and where they are kept. Immutable.
 *
 * @param endpoint base address of the hub, {@code http} or {@code https}
 * @param cacheFolder folder that holds one {@code models--org--name} folder per repository
 * @param token access token sent to {@code endpoint} and to no other host; null for none
 * @param offline true: never touch the network, use what is cached
 * @param timeout longest wait for a connection, for response headers, and for the next byte of a body
 * @param retryDelay wait before the first retry of a failed request; doubles with each further one
 */
public record HubOptions(
    URI endpoint, Path cacheFolder, String token, boolean offline, Duration timeout, Duration retryDelay) {

  public static final URI DEFAULT_ENDPOINT = URI.create("https://huggingface.co");

  private static final Set<String> TRUE = Set.of("1", "on", "yes", "true");

  public HubOptions {
    Objects.requireNonNull(cacheFolder, "cacheFolder");
    String scheme = Objects.requireNonNull(endpoint, "endpoint").getScheme();
    if (!("http".equalsIgnoreCase(scheme) || "https".equalsIgnoreCase(scheme)) || endpoint.getHost() == null) {
      throw new IllegalArgumentException(
          "hub endpoint (HF_ENDPOINT) must be an http or https address, got '" + endpoint + "'");
    }
    if (token != null && !token.chars().allMatch(c -> c > ' ' && c < 127)) {
      throw new IllegalArgumentException("the hub token (HF_TOKEN or the token file) contains blanks or non-ASCII");
    }
    if (timeout.isNegative() || timeout.isZero() || retryDelay.isNegative()) {
      throw new IllegalArgumentException(
          "timeout must be positive and retryDelay not negative, got " + timeout + " and " + retryDelay);
    }
  }

  /**
   * Reads the environment variables of the Python hub client: {@code HF_HOME}, {@code HF_HUB_CACHE} (or {@code
   * HUGGINGFACE_HUB_CACHE}), {@code HF_ENDPOINT}, {@code HF_TOKEN}, {@code HF_TOKEN_PATH}, {@code HF_HUB_OFFLINE}.
   *
   * @throws IllegalArgumentException if one of them is malformed; the message names it
   */
  public static HubOptions fromEnvironment() {
    return fromEnvironment(System.getenv(), Path.of(System.getProperty("user.home")));
  }

  static HubOptions fromEnvironment(Map<String, String> env, Path userHome) {
    String xdgCache = value(env, "XDG_CACHE_HOME");
    Path caches = xdgCache == null ? userHome.resolve(".cache") : expand(xdgCache, userHome);
    String hfHome = value(env, "HF_HOME");
    Path home = hfHome == null ? caches.resolve("huggingface") : expand(hfHome, userHome);

    String hubCache = value(env, "HF_HUB_CACHE");
    if (hubCache == null) {
      hubCache = value(env, "HUGGINGFACE_HUB_CACHE");
    }
    String endpoint = value(env, "HF_ENDPOINT");
    String tokenPath = value(env, "HF_TOKEN_PATH");
    String token = value(env, "HF_TOKEN");
    if (token == null) {
      token = readToken(tokenPath == null ? home.resolve("token") : expand(tokenPath, userHome));
    }
    String offline = value(env, "HF_HUB_OFFLINE");
    return new HubOptions(
        endpoint == null ? DEFAULT_ENDPOINT : parseEndpoint(endpoint),
        hubCache == null ? home.resolve("hub") : expand(hubCache, userHome),
        token,
        offline != null && TRUE.contains(offline.toLowerCase(Locale.ROOT)),
        Duration.ofSeconds(30),
        Duration.ofSeconds(1));
  }

  /** Leaves the token out, so that logging the options does not leak it. */
  @Override
  public String toString() {
    return "HubOptions[endpoint=" + endpoint + ", cacheFolder=" + cacheFolder + ", token="
        + (token == null ? "none" : "set") + ", offline=" + offline + ", timeout=" + timeout + ", retryDelay="
        + retryDelay + "]";
  }

  private static String value(Map<String, String> env, String name) {
    String value = env.get(name);
    return value == null || value.isBlank() ? null : value.strip();
  }

  private static Path expand(String path, Path userHome) {
    if (path.equals("~")) {
      return userHome;
    }
    return path.startsWith("~/") ? userHome.resolve(path.substring(2)) : Path.of(path);
  }

  private static URI parseEndpoint(String endpoint) {
    String withoutSlash = endpoint.replaceAll("/+$", "");
    try {
      return URI.create(withoutSlash);
    } catch (IllegalArgumentException e) {
      throw new IllegalArgumentException("HF_ENDPOINT is not an address: '" + endpoint + "'", e);
    }
  }

  private static String readToken(Path file) {
    try {
      if (!Files.isRegularFile(file) || Files.size(file) > 4096) {
        return null;
      }
      String token = Files.readString(file).strip();
      return token.isEmpty() ? null : token;
    } catch (IOException unreadable) {
      System.getLogger(HubOptions.class.getName())
          .log(System.Logger.Level.WARNING, "hub token file {0} cannot be read: {1}", file, unreadable);
      return null;
    }
  }
}

package org.mamba4j.checkpoint;

import static org.mamba4j.checkpoint.CheckpointException.in;
import static org.mamba4j.checkpoint.CheckpointException.mismatch;
import static org.mamba4j.checkpoint.CheckpointException.quote;

import java.io.IOException;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.SequencedMap;
import java.util.regex.Pattern;

/** The index of a sharded checkpoint: {@code {"weight_map": {"tensor": "shard file"}}}. */
final class ShardIndex {
  private static final int MAX_SHARDS = 10_000;
  // A name that cannot leave the folder on any system.
  private static final Pattern FILE_NAME = Pattern.compile("[A-Za-z0-9_][A-Za-z0-9._-]{0,199}");

  private ShardIndex() {}

  /** The plain file name of the shard that holds each tensor. */
  static SequencedMap<String, String> parse(Path file, byte[] json) throws IOException {
    var root = Json.tree(file, "the index", json);
    if (!(root.get("weight_map") instanceof Map<?, ?> map) || map.isEmpty()) {
      String found = root.containsKey("weight_map") ? "another value" : "none";
      throw mismatch(file, "weight_map", "an object from tensor to file", found);
    }
    var shards = new LinkedHashMap<String, String>();
    for (var entry : map.entrySet()) {
      String tensor = entry.getKey().toString();
      if (!(entry.getValue() instanceof String name)) {
        throw CheckpointException.tensor(file, tensor, "the name of a file", "another value");
      }
      if (!FILE_NAME.matcher(name).matches()) {
        throw CheckpointException.tensor(file, tensor, "a plain file name inside of the folder", quote(name));
      }
      shards.put(tensor, name);
    }
    if (shards.values().stream().distinct().count() > MAX_SHARDS) {
      throw in(file, "expected at most " + MAX_SHARDS + " shards, found more");
    }
    return shards;
  }
}

package org.mamba4j.checkpoint;

import static org.mamba4j.checkpoint.CheckpointException.in;
import static org.mamba4j.checkpoint.CheckpointException.quote;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.mamba4j.Tensor;

/** The tensors of a folder, in one file or several, under the names that Hugging Face gives them. */
final class TensorIndex implements AutoCloseable {
  private static final int MAX_INDEX_BYTES = 64 << 20;
  private static final List<String> LAYOUTS = List.of("model.safetensors", "pytorch_model.bin");

  private record Place(TensorFile file, String name) {}

  private final Path source;
  private final List<TensorFile> files;
  private final Map<String, Place> places = new LinkedHashMap<>();

  /** Takes over the files, which {@code source} stands for. */
  TensorIndex(Path source, List<TensorFile> files) throws CheckpointException {
    this.source = source;
    this.files = files;
    for (TensorFile file : files) {
      for (String name : file.names()) {
        Place other = places.put(file.canonical(name), new Place(file, name));
        if (other != null) {
          throw CheckpointException.tensor(
              file.path(), name, "once", quote(other.name()) + " in " + other.file().path().getFileName() + " as well");
        }
      }
    }
  }

  /** Whether a folder holds one of the layouts that {@link #open} reads. */
  static boolean isPresent(Path folder) {
    return LAYOUTS.stream()
        .anyMatch(name -> Files.exists(folder.resolve(name)) || Files.exists(folder.resolve(name + ".index.json")));
  }

  /** Opens what a model folder holds: the first of the layouts that is there. */
  static TensorIndex open(Path folder) throws IOException {
    for (String name : LAYOUTS) {
      Path file = folder.resolve(name);
      Path index = folder.resolve(name + ".index.json");
      if (Files.exists(file)) {
        return of(file, List.of(name), Map.of());
      }
      if (Files.exists(index)) {
        var shards = ShardIndex.parse(index, InputFiles.read(index, MAX_INDEX_BYTES));
        return of(index, shards.values().stream().distinct().toList(), shards);
      }
    }
    throw in(folder, "expected model.safetensors, pytorch_model.bin or the index of their shards, found none of them");
  }

  private static TensorIndex of(Path source, List<String> names, Map<String, String> shards) throws IOException {
    var files = new ArrayList<TensorFile>();
    try {
      for (String name : names) {
        Path path = source.resolveSibling(name);
        boolean safetensors = source.getFileName().toString().startsWith("model.safetensors");
        files.add(safetensors ? SafetensorsFile.open(path) : TorchFile.open(path));
      }
      if (!shards.isEmpty()) {
        checkShards(source, files, shards);
      }
      return new TensorIndex(source, List.copyOf(files));
    } catch (Throwable e) {
      files.forEach(TensorFile::close);
      throw e;
    }
  }

  /** Index and shards must agree about every tensor. */
  private static void checkShards(Path index, List<TensorFile> files, Map<String, String> shards)
      throws CheckpointException {
    for (TensorFile file : files) {
      String shard = file.path().getFileName().toString();
      for (String name : file.names()) {
        if (!shard.equals(shards.get(name))) {
          String other = shards.get(name);
          String expected = other == null ? "in the index" : "only in " + other + " as the index says";
          throw CheckpointException.tensor(file.path(), name, expected, "in this shard");
        }
      }
      for (var entry : shards.entrySet()) {
        if (entry.getValue().equals(shard) && !file.names().contains(entry.getKey())) {
          throw CheckpointException.tensor(index, entry.getKey(), "in shard " + shard, "no tensor of this name there");
        }
      }
    }
  }

  /** The file that stands for all: the only one, or the index of the shards. */
  Path source() {
    return source;
  }

  List<Path> files() {
    return files.stream().map(TensorFile::path).toList();
  }

  Set<String> names() {
    return places.keySet();
  }

  boolean has(String name) {
    return places.containsKey(name);
  }

  /** What the files call a tensor, there or not. */
  String spelling(String name) {
    return files.getFirst().spelling(name);
  }

  Path fileOf(String name) {
    return places.get(name).file().path();
  }

  /** A tensor that is there, by its canonical name. */
  Tensor tensor(String name) throws CheckpointException {
    Place place = places.get(name);
    return place.file().tensor(place.name());
  }

  @Override
  public void close() {
    files.forEach(TensorFile::close);
  }
}

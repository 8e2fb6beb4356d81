package org.mamba4j.bench.peers;

import static java.lang.foreign.ValueLayout.ADDRESS;
import static java.lang.foreign.ValueLayout.JAVA_BOOLEAN;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SegmentAllocator;
import java.lang.foreign.StructLayout;
import java.lang.foreign.SymbolLookup;
import java.lang.invoke.MethodHandle;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.stream.Stream;

/**
 * llama.cpp through the C API of its shared libraries, without anything in between.
 *
 * <p>Its parameter structs are passed by value and grow with every release. They travel here in blobs larger than any of
 * them: the called function writes or reads only its part, and of the fields only the first three of the context's are
 * touched, which have stayed in place.
 */
final class LlamaCpp extends TokenContender {
  /** Tokens that one call computes at once, and more than any sequence here is long. */
  private static final int BATCH = 512;

  private static final int CONTEXT = 4096;

  private static final StructLayout PARAMS = MemoryLayout.structLayout(MemoryLayout.sequenceLayout(64, JAVA_LONG));

  /** llama_batch: n_tokens, token, and embd, pos, n_seq_id, seq_id, logits, for which null means the default. */
  private static final StructLayout BATCH_STRUCT =
      MemoryLayout.structLayout(
          JAVA_INT, MemoryLayout.paddingLayout(4), ADDRESS, ADDRESS, ADDRESS, ADDRESS, ADDRESS, ADDRESS);

  private final Arena arena = Arena.ofShared();
  private final Api api;
  private final MemorySegment model;
  private final MemorySegment context;
  private final MemorySegment memory;
  private final MemorySegment batch = arena.allocate(BATCH_STRUCT);
  private final MemorySegment ids = arena.allocate(JAVA_INT, CONTEXT);
  private final long vocabulary;

  LlamaCpp(Path libraries, Path gguf, int threads) {
    api = Api.in(libraries);
    MemorySegment modelParams = (MemorySegment) call(api.modelDefaultParams, (SegmentAllocator) arena);
    model = (MemorySegment) call(api.modelLoad, arena.allocateFrom(gguf.toString()), modelParams);
    if (model.address() == 0) {
      throw new IllegalStateException("llama.cpp cannot load " + gguf);
    }
    MemorySegment contextParams = (MemorySegment) call(api.contextDefaultParams, (SegmentAllocator) arena);
    contextParams.setAtIndex(JAVA_INT, 0, CONTEXT); // n_ctx
    contextParams.setAtIndex(JAVA_INT, 1, BATCH); // n_batch
    contextParams.setAtIndex(JAVA_INT, 2, BATCH); // n_ubatch
    context = (MemorySegment) call(api.initFromModel, model, contextParams);
    if (context.address() == 0) {
      throw new IllegalStateException("llama.cpp cannot make a context for " + gguf);
    }
    call(api.setThreads, context, threads, threads);
    memory = (MemorySegment) call(api.getMemory, context);
    MemorySegment vocab = (MemorySegment) call(api.getVocab, model);
    vocabulary = (int) call(api.vocabSize, vocab);
    batch.set(ADDRESS, 8, ids);
  }

  @Override
  void reset() {
    call(api.memoryClear, memory, true);
  }

  @Override
  MemorySegment feed(int... tokens) {
    MemorySegment.copy(tokens, 0, ids, JAVA_INT, 0, tokens.length);
    batch.set(JAVA_INT, 0, tokens.length);
    int status;
    MemorySegment logits;
    try {
      status = (int) api.decode.invokeExact(context, batch);
      logits = (MemorySegment) api.getLogits.invokeExact(context, -1);
    } catch (Throwable e) {
      throw new IllegalStateException(e);
    }
    if (status != 0) {
      throw new IllegalStateException("llama_decode of " + tokens.length + " tokens returned " + status);
    }
    return logits.reinterpret(vocabulary * Float.BYTES);
  }

  @Override
  public void close() {
    call(api.free, context);
    call(api.modelFree, model);
    arena.close();
  }

  /** For calls whose own time does not count. */
  private static Object call(MethodHandle function, Object... arguments) {
    try {
      return function.invokeWithArguments(arguments);
    } catch (RuntimeException | Error e) {
      throw e;
    } catch (Throwable e) {
      throw new IllegalStateException(e);
    }
  }

  /** The functions that are needed, of libraries that stay loaded. */
  private record Api(
      MethodHandle modelDefaultParams,
      MethodHandle contextDefaultParams,
      MethodHandle modelLoad,
      MethodHandle initFromModel,
      MethodHandle setThreads,
      MethodHandle getMemory,
      MethodHandle memoryClear,
      MethodHandle getVocab,
      MethodHandle vocabSize,
      MethodHandle decode,
      MethodHandle getLogits,
      MethodHandle free,
      MethodHandle modelFree) {
    private static Api loaded;

    static synchronized Api in(Path folder) {
      if (loaded == null) {
        SymbolLookup ggml = SymbolLookup.libraryLookup(library(folder, "libggml."), Arena.global());
        SymbolLookup llama = SymbolLookup.libraryLookup(library(folder, "libllama."), Arena.global());
        // Its variants for the instruction sets lie beside it.
        call(
            function(ggml, "ggml_backend_load_all_from_path", FunctionDescriptor.ofVoid(ADDRESS)),
            Arena.global().allocateFrom(folder.toString()));
        call(function(llama, "llama_backend_init", FunctionDescriptor.ofVoid()));
        loaded =
            new Api(
                function(llama, "llama_model_default_params", FunctionDescriptor.of(PARAMS)),
                function(llama, "llama_context_default_params", FunctionDescriptor.of(PARAMS)),
                function(llama, "llama_model_load_from_file", FunctionDescriptor.of(ADDRESS, ADDRESS, PARAMS)),
                function(llama, "llama_init_from_model", FunctionDescriptor.of(ADDRESS, ADDRESS, PARAMS)),
                function(llama, "llama_set_n_threads", FunctionDescriptor.ofVoid(ADDRESS, JAVA_INT, JAVA_INT)),
                function(llama, "llama_get_memory", FunctionDescriptor.of(ADDRESS, ADDRESS)),
                function(llama, "llama_memory_clear", FunctionDescriptor.ofVoid(ADDRESS, JAVA_BOOLEAN)),
                function(llama, "llama_model_get_vocab", FunctionDescriptor.of(ADDRESS, ADDRESS)),
                function(llama, "llama_vocab_n_tokens", FunctionDescriptor.of(JAVA_INT, ADDRESS)),
                function(llama, "llama_decode", FunctionDescriptor.of(JAVA_INT, ADDRESS, BATCH_STRUCT)),
                function(llama, "llama_get_logits_ith", FunctionDescriptor.of(ADDRESS, ADDRESS, JAVA_INT)),
                function(llama, "llama_free", FunctionDescriptor.ofVoid(ADDRESS)),
                function(llama, "llama_model_free", FunctionDescriptor.ofVoid(ADDRESS)));
      }
      return loaded;
    }

    private static MethodHandle function(SymbolLookup library, String name, FunctionDescriptor type) {
      return Linker.nativeLinker().downcallHandle(library.findOrThrow(name), type);
    }

    /** Its name holds the release: libllama.v0.5.0.so. */
    private static Path library(Path folder, String prefix) {
      try (Stream<Path> files = Files.list(folder)) {
        return files
            .filter(file -> file.getFileName().toString().startsWith(prefix))
            .filter(file -> file.toString().endsWith(".so"))
            .findFirst()
            .orElseThrow(() -> new NoSuchFileException(folder.resolve(prefix + "*so").toString()));
      } catch (IOException e) {
        throw new UncheckedIOException(e);
      }
    }
  }
}

package org.mamba4j.bench.peers;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import org.mamba4j.ActivationType;
import org.mamba4j.Model;
import org.mamba4j.ModelOptions;
import org.mamba4j.Session;

/** This library. */
final class Mamba4j extends TokenContender {
  private final Model model;
  private final Session session;

  Mamba4j(Path folder, int threads, ActivationType activations) throws IOException {
    model = Model.load(folder, ModelOptions.defaults().withThreads(threads).withActivationType(activations));
    session = model.newSession();
  }

  @Override
  void reset() {
    session.reset();
  }

  @Override
  MemorySegment feed(int... tokens) {
    session.advance(tokens);
    return session.logits().segment();
  }

  @Override
  public void close() {
    session.close();
    model.close();
  }
}

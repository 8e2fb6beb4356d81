package org.mamba4j.text;

import java.util.Objects;
import java.util.concurrent.Flow;
import java.util.function.Supplier;

/**
 * Publishes a generation of its own to each subscriber, computed on a thread of its own and only as far as tokens were
 * requested.
 */
final class TokenPublisher implements Flow.Publisher<GeneratedToken> {
  private final Supplier<Generation> generations;

  TokenPublisher(Supplier<Generation> generations) {
    this.generations = generations;
  }

  @Override
  public void subscribe(Flow.Subscriber<? super GeneratedToken> subscriber) {
    Objects.requireNonNull(subscriber, "subscriber");
    Subscription subscription = new Subscription(subscriber);
    subscriber.onSubscribe(subscription);
    Thread.ofPlatform().daemon().name("mamba4j-generate").start(() -> subscription.run(generations));
  }

  private static final class Subscription implements Flow.Subscription {
    private final Flow.Subscriber<? super GeneratedToken> subscriber;
    private Generation generation; // guarded by this, as all fields below
    private long demand;
    private boolean cancelled;
    private Throwable failure;

    Subscription(Flow.Subscriber<? super GeneratedToken> subscriber) {
      this.subscriber = subscriber;
    }

    @Override
    public synchronized void request(long n) {
      if (n <= 0) {
        failure = new IllegalArgumentException("request(" + n + "): expected a positive number");
      } else {
        demand = demand + n < 0 ? Long.MAX_VALUE : demand + n;
      }
      notifyAll();
    }

    @Override
    public synchronized void cancel() {
      cancelled = true;
      if (generation != null) {
        generation.abort();
      }
      notifyAll();
    }

    void run(Supplier<Generation> generations) {
      try {
        generate(generations);
      } catch (Throwable e) {
        fail(e);
      }
      synchronized (this) {
        if (cancelled) {
          return;
        }
        cancelled = true;
      }
      if (failure == null) {
        subscriber.onComplete();
      } else {
        subscriber.onError(failure);
      }
    }

    private void generate(Supplier<Generation> generations) throws InterruptedException {
      if (!awaitDemand()) {
        return;
      }
      try (Generation running = generations.get()) {
        attach(running);
        do {
          GeneratedToken token = running.next();
          if (token == null || isCancelled()) {
            return;
          }
          deliver(token);
        } while (!running.isFinished() && awaitDemand());
      }
    }

    private synchronized void attach(Generation running) {
      generation = running;
      if (cancelled) {
        running.abort();
      }
    }

    private void deliver(GeneratedToken token) {
      try {
        subscriber.onNext(token);
      } catch (RuntimeException | Error e) {
        cancel(); // a subscriber must not throw; one that does gets no further signal
        System.getLogger(TokenPublisher.class.getName())
            .log(System.Logger.Level.WARNING, "subscriber failed in onNext; its subscription is cancelled", e);
      }
    }

    /** Takes one token's worth of demand; false if the subscription is over. */
    private synchronized boolean awaitDemand() throws InterruptedException {
      while (demand == 0 && !cancelled && failure == null) {
        wait();
      }
      if (cancelled || failure != null) {
        return false;
      }
      demand -= demand == Long.MAX_VALUE ? 0 : 1;
      return true;
    }

    private synchronized boolean isCancelled() {
      return cancelled;
    }

    private synchronized void fail(Throwable e) {
      failure = e;
    }
  }
}

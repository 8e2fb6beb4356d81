package org.mamba4j.text;

/** The logarithms of a distribution's probabilities, in double precision. */
record LogSoftmax(float[] logits, double logSum) {

  static LogSoftmax of(float[] logits) {
    double max = Double.NEGATIVE_INFINITY;
    for (float logit : logits) {
      max = Math.max(max, logit);
    }
    double sum = 0;
    for (float logit : logits) {
      sum += Math.exp(logit - max);
    }
    return new LogSoftmax(logits, max + Math.log(sum));
  }

  double at(int id) {
    return logits[id] - logSum;
  }

  /** KL(this || other) = sum over p (log p - log q), in nats; rounding never makes it negative. */
  double divergenceFrom(LogSoftmax other) {
    double divergence = 0;
    for (int id = 0; id < logits.length; id++) {
      double logP = at(id);
      divergence += Math.exp(logP) * (logP - other.at(id));
    }
    return Math.max(0, divergence);
  }
}

package org.mamba4j.bench.peers;

/**
 * One measurement.
 *
 * @param seconds of one call
 * @param foreignShare part of the machine's processors that others had in the meantime, 0 to 1
 */
record Sample(double seconds, double foreignShare) {}

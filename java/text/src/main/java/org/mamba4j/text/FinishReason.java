package org.mamba4j.text;

/** Why a generation ended. */
public enum FinishReason {
  /** The model produced one of the stop tokens, such as its end-of-text token. */
  STOP_TOKEN,
  /** The text contained one of the stop strings. */
  STOP_STRING,
  /** {@link GenerationOptions#maxNewTokens()} tokens were produced. */
  LENGTH,
  /** {@link Cancellation#cancel} was called, or the stream or subscription was given up. */
  CANCELLED
}

/** Tokenizer, sampling and text generation on top of {@code org.mamba4j.core}. */
module org.mamba4j.text {
  requires transitive org.mamba4j.core;
  requires ai.djl.tokenizers;
  requires com.fasterxml.jackson.core;

  exports org.mamba4j.text;
}

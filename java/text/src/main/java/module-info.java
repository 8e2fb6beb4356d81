/** Tokenizer, sampling and text generation on top of {@code org.mamba4j.core}. */
module org.mamba4j.text {
  requires transitive org.mamba4j.core;
  requires ai.djl.tokenizers;
  requires com.fasterxml.jackson.core;
  requires com.fasterxml.jackson.jr.ob;
  // Needed by ai.djl.tokenizers, which as an automatic module cannot ask for them itself.
  requires com.google.gson;
  requires org.slf4j;

  exports org.mamba4j.text;
}

/** Tensors, models, sessions, checkpoint readers and hub download. */
module org.mamba4j.core {
  requires com.fasterxml.jackson.core;
  requires com.fasterxml.jackson.jr.ob;
  requires java.net.http;
  requires org.mamba4j.ffi;

  exports org.mamba4j;
  exports org.mamba4j.checkpoint;
  exports org.mamba4j.hub;
}

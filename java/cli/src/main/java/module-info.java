/** The mamba4j command. */
module org.mamba4j.cli {
  requires com.fasterxml.jackson.core;
  requires com.fasterxml.jackson.jr.ob;
  requires info.picocli;
  requires org.mamba4j.core;
  requires org.mamba4j.text;

  exports org.mamba4j.cli;

  // picocli sets the annotated fields
  opens org.mamba4j.cli to
      info.picocli;
}

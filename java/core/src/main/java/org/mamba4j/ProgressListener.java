package org.mamba4j;

/** Hears how far a long operation has come. */
@FunctionalInterface
public interface ProgressListener {
  /**
   * Called from the thread that does the work, several times for one {@code what}.
   *
   * @param what what is being done, such as the name of a file
   * @param done units finished so far, usually bytes
   * @param total units in all, -1 while unknown
   */
  void progress(String what, long done, long total);
}

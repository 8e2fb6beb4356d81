package org.mamba4j.cli;

import java.io.FileNotFoundException;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.NoSuchFileException;
import java.nio.file.NotDirectoryException;

/** One line that says what went wrong. */
final class Errors {
  private Errors() {}

  static String describe(Throwable e) {
    // The messages of these are bare paths.
    String line =
        switch (e) {
          case NoSuchFileException missing -> "there is no file " + missing.getMessage();
          case AccessDeniedException denied -> "no permission to access " + denied.getMessage();
          case FileAlreadyExistsException there -> there.getMessage() + " exists already";
          case NotDirectoryException file -> file.getMessage() + " is not a folder";
          case FileNotFoundException missing -> "cannot open " + missing.getMessage();
          case OutOfMemoryError memory -> "out of memory: " + memory.getMessage();
          case NullPointerException bug -> internal(bug);
          case Error bug -> internal(bug);
          default -> e.getMessage() == null ? e.toString() : e.getMessage();
        };
    return line.strip().replaceAll("\\s*\\R\\s*", " ");
  }

  private static String internal(Throwable bug) {
    return "internal error: " + bug + " (--verbose shows where)";
  }
}

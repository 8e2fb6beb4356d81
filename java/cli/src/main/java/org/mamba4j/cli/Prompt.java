package org.mamba4j.cli;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import picocli.CommandLine.Option;

/** A text or token ids; exactly one of the options is given. */
final class Prompt {
  @Option(
      names = "--prompt",
      paramLabel = "TEXT",
      description = "The text; the tokenizer adds the special tokens that its own settings name.")
  private String text;

  @Option(
      names = "--prompt-file",
      paramLabel = "FILE",
      description = "A UTF-8 file with the text; - reads standard input.")
  private Path file;

  @Option(
      names = "--ids",
      paramLabel = "IDS",
      converter = TokenIds.Converter.class,
      description = "Token ids, separated by commas; fed as they are.")
  private TokenIds ids;

  /** Token ids, or null if this is a text. */
  int[] ids() {
    return ids == null ? null : ids.values();
  }

  /** The text; only if there are no ids. */
  String text() throws IOException {
    if (text != null) {
      return text;
    }
    boolean standardInput = file.toString().equals("-");
    byte[] bytes = standardInput ? System.in.readAllBytes() : Files.readAllBytes(file);
    try {
      return StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(bytes)).toString();
    } catch (CharacterCodingException e) {
      throw new IOException((standardInput ? "standard input" : file) + " is not UTF-8 text", e);
    }
  }
}

package org.mamba4j.text;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class StreamDecoderTest {
  private static Tokenizer demo;
  private static Tokenizer sentencePiece;

  @BeforeAll
  static void load(@TempDir Path folder) throws IOException {
    demo = Fixtures.demoTokenizer();
    sentencePiece = Fixtures.sentencePieceTokenizer(folder);
  }

  @AfterAll
  static void close() {
    demo.close();
    sentencePiece.close();
  }

  private static String decode(StreamDecoder decoder, int[] ids) {
    StringBuilder text = new StringBuilder();
    for (int id : ids) {
      text.append(decoder.next(id));
    }
    return text.append(decoder.flush()).toString();
  }

  @ParameterizedTest
  @ValueSource(strings = {
    "Hello world", "a😀b", "😀😀😀", "👩‍👩‍👧 é ß 日本語", "x\n\n\ty  z", "\uFFFD", "a\uFFFD\uFFFDb", "😀\uFFFD😀", " lead", ""
  })
  void piecesAreWholeCharactersAndAddUp(String text) {
    for (Tokenizer tokenizer : new Tokenizer[] {demo, sentencePiece}) {
      int[] ids = tokenizer.encode(text);
      assertEquals(text, decode(tokenizer.newStreamDecoder(), ids));
      StreamDecoder decoder = tokenizer.newStreamDecoder();
      StringBuilder shown = new StringBuilder();
      for (int id : ids) {
        shown.append(decoder.next(id));
        assertTrue(text.startsWith(shown.toString()), shown::toString);
        assertFalse(!shown.isEmpty() && Character.isHighSurrogate(shown.charAt(shown.length() - 1)));
      }
    }
  }

  @Test
  void aCharacterOfFourTokensAppearsWithItsLast() {
    int[] emoji = demo.encodeWithoutSpecialTokens("😀");
    assertEquals(4, emoji.length);
    StreamDecoder decoder = demo.newStreamDecoder();
    for (int i = 0; i < 3; i++) {
      assertEquals("", decoder.next(emoji[i]));
    }
    assertEquals("😀", decoder.next(emoji[3]));
    assertEquals("", decoder.flush());
  }

  @Test
  void anyNumberOfBytesThatAreNoCharacter() {
    int middle = demo.encodeWithoutSpecialTokens("😀")[1];
    int[] letters = demo.encodeWithoutSpecialTokens("a\nb");
    for (int count = 0; count < 60; count++) {
      int[] ids = IntStream.concat(IntStream.generate(() -> middle).limit(count), Arrays.stream(letters)).toArray();
      assertEquals("\uFFFD".repeat(count) + "a\nb", decode(demo.newStreamDecoder(), ids), count + " bytes");
    }
  }

  @Test
  void anUnfinishedCharacterShowsAsReplacementAtTheEndOnly() {
    int[] emoji = demo.encodeWithoutSpecialTokens("a😀");
    StreamDecoder decoder = demo.newStreamDecoder();
    assertEquals("a", decoder.next(emoji[0]));
    assertEquals("", decoder.next(emoji[1]));
    assertEquals("\uFFFD", decoder.flush());
    assertEquals("a", decoder.next(emoji[0]), "starts over");
  }

  @Test
  void anythingAModelMayProduceIsDecodedAsInOnePiece() {
    Random random = new Random(3);
    for (int round = 0; round < 300; round++) {
      // half of the rounds: mostly single bytes, so mostly invalid UTF-8
      int bound = round % 2 == 0 ? demo.vocabSize() + 50 : 257;
      int[] ids = IntStream.range(0, 80).map(_ -> random.nextInt(bound)).toArray();
      assertEquals(demo.decode(ids), decode(demo.newStreamDecoder(), ids), () -> Arrays.toString(ids));
    }
  }

  @Test
  void endlessInvalidBytesAreShownAfterAWhile() {
    int continuation = demo.encodeWithoutSpecialTokens("😀")[3];
    StreamDecoder decoder = demo.newStreamDecoder();
    int shown = 0;
    for (int i = 1; i <= 1000; i++) {
      shown += decoder.next(continuation).length();
      assertTrue(shown <= i && shown >= i - 25, "after " + i + " bytes " + shown + " are shown");
    }
    assertEquals(1000, shown + decoder.flush().length());
  }

  @Test
  void specialTokensAndPaddingAddNothing() {
    int[] emoji = demo.encodeWithoutSpecialTokens("😀");
    StreamDecoder decoder = demo.newStreamDecoder();
    for (int i = 0; i < 4; i++) {
      assertEquals("", decoder.next(0));
      assertEquals("", decoder.next(5000));
      assertEquals(i == 3 ? "😀" : "", decoder.next(emoji[i]));
    }
  }

  @Test
  void aContinuationKeepsTheSpaceOfItsFirstWord() {
    int[] prompt = sentencePiece.encode("Hello");
    int[] both = sentencePiece.encode("Hello world");
    int[] continuation = Arrays.copyOfRange(both, prompt.length, both.length);
    assertEquals("world", decode(sentencePiece.newStreamDecoder(), continuation), "as the beginning of a text");
    assertEquals(" world", decode(sentencePiece.newStreamDecoder(prompt), continuation));
    assertEquals("world", sentencePiece.decode(continuation));
  }

  @Test
  void contextMayBeAnything() {
    int[] emoji = demo.encodeWithoutSpecialTokens("😀");
    int[][] contexts = {
      {}, {0}, {emoji[0]}, {emoji[0], emoji[1]}, demo.encode("\uFFFD"), demo.encode("x".repeat(99))
    };
    for (int[] before : contexts) {
      assertEquals(" int", decode(demo.newStreamDecoder(before), demo.encodeWithoutSpecialTokens(" int")));
    }
  }
}

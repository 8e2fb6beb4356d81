package org.mamba4j.checkpoint;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.mamba4j.checkpoint.Goldens.assertRefused;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.mamba4j.DType;
import org.mamba4j.Tensor;

class TorchFileTest {
  @TempDir Path folder;

  private Path write(byte[] content) throws IOException {
    Path path = folder.resolve("pytorch_model.bin");
    Files.write(path, content);
    return path;
  }

  private void assertPickleRefused(byte[] pickle, String... parts) throws IOException {
    assertFileRefused(ZipBuilder.torch(pickle, floats(6)), parts);
  }

  private void assertFileRefused(byte[] file, String... parts) throws IOException {
    Path path = write(file);
    assertRefused(() -> TorchFile.open(path), "pytorch_model.bin");
    assertRefused(() -> TorchFile.open(path), parts);
  }

  private static byte[] floats(int count) {
    ByteBuffer bytes = ByteBuffer.allocate(4 * count).order(ByteOrder.LITTLE_ENDIAN);
    for (int i = 0; i < count; i++) {
      bytes.putFloat(i);
    }
    return bytes.array();
  }

  private static long[] dims(long... dims) {
    return dims;
  }

  @Test
  void goldenHasTheTensorsOfTorchSave() throws IOException {
    try (var file = TorchFile.open(Goldens.folder("mamba1-tied-original").resolve("pytorch_model.bin"))) {
      assertEquals(43, file.names().size());
      assertTrue(file.names().contains("backbone.layers.3.mixer.conv1d.weight"));
      Tensor conv = file.tensor("backbone.layers.3.mixer.conv1d.weight");
      assertArrayEquals(dims(128, 1, 4), conv.shape());
      assertEquals(DType.F32, conv.dtype());
      assertTrue(conv.segment().isReadOnly() && conv.isAligned(), "mapped in place");
      assertRefused(() -> file.tensor("none"), "pytorch_model.bin", "'none'");
    }
  }

  @Test
  void closedFilesThrow() throws IOException {
    byte[] pickle = PickleBuilder.tensor("FloatStorage", 6, 0, dims(6), dims(1));
    var file = TorchFile.open(write(ZipBuilder.torch(pickle, floats(6))));
    Tensor tensor = file.tensor("w");
    file.close();
    file.close();
    assertThrows(IllegalStateException.class, () -> tensor.getFloat(0));
  }

  @Test
  void stridedTensorsAreMadeContiguous() throws IOException {
    byte[] pickle = PickleBuilder.tensor("FloatStorage", 6, 0, dims(2, 3), dims(1, 2));
    try (var file = TorchFile.open(write(ZipBuilder.torch(pickle, floats(6))))) {
      assertTrue(file.tensor("w").isContiguous());
      assertArrayEquals(new float[] {0, 2, 4, 1, 3, 5}, file.tensor("w").toFloatArray());
    }
  }

  @Test
  void windowsOnAStorage() throws IOException {
    byte[] pickle = PickleBuilder.tensor("FloatStorage", 6, 2, dims(1, 3), dims(17, 1));
    try (var file = TorchFile.open(write(ZipBuilder.torch(pickle, floats(6))))) {
      assertArrayEquals(new float[] {2, 3, 4}, file.tensor("w").toFloatArray());
      assertArrayEquals(dims(3, 1), file.tensor("w").strides());
    }
  }

  @ParameterizedTest
  @CsvSource({
    "DoubleStorage,F64", "FloatStorage,F32", "HalfStorage,F16", "BFloat16Storage,BF16", "LongStorage,I64",
    "IntStorage,I32", "ShortStorage,I16", "CharStorage,I8", "ByteStorage,U8", "BoolStorage,BOOL"
  })
  void storageTypes(String type, DType dtype) throws IOException {
    byte[] pickle = PickleBuilder.tensor(type, 2, 0, dims(2), dims(1));
    try (var file = TorchFile.open(write(ZipBuilder.torch(pickle, new byte[2 * dtype.byteSize()])))) {
      assertEquals(dtype, file.tensor("w").dtype());
    }
  }

  @Test
  void parametersModuleAttributesMemoAndProtocol4() throws IOException {
    byte[] pickle =
        new PickleBuilder().op(0x80, 4).op(0x95).op(0, 0, 0, 0, 0, 0, 0, 0)
            .op(0x8c, 11).raw("collections").op(0x94).op(0x8c, 11).raw("OrderedDict").op(0x93, 0x94)
            .op(')', 'R', 'q', 9)
            .op('(').text("w")
            .global("torch._utils", "_rebuild_parameter").op('(')
            .tensorValue("FloatStorage", 6, 0, dims(6), dims(1)).op(0x88, 'N', 't', 'R')
            .op('u')
            .op('}').text("_metadata").op('h', 9, 's', 'b')
            .op('.')
            .bytes();
    try (var file = TorchFile.open(write(ZipBuilder.torch(pickle, floats(6))))) {
      assertEquals(5f, file.tensor("w").getFloat(5));
    }
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void zip64(boolean zip64) throws IOException {
    byte[] zip =
        new ZipBuilder(zip64)
            .add("model/data.pkl", PickleBuilder.tensor("FloatStorage", 6, 0, dims(6), dims(1)))
            .add("model/data/0", floats(6))
            .bytes();
    try (var file = TorchFile.open(write(zip))) {
      assertEquals(5f, file.tensor("w").getFloat(5));
    }
  }

  @Test
  void callingOsSystemIsRefusedByName() throws IOException {
    Path evidence = folder.resolve("evidence");
    byte[] pickle =
        PickleBuilder.protocol2().global("os", "system").text("touch " + evidence).op(0x85, 'R', '.').bytes();
    assertPickleRefused(pickle, "'os.system'", "nothing is ever executed");
    byte[] stackGlobal =
        PickleBuilder.protocol2()
            .text("posix").text("system").op(0x93).text("touch " + evidence).op(0x85, 'R', '.')
            .bytes();
    assertPickleRefused(stackGlobal, "'posix.system'");
    assertFalse(Files.exists(evidence));
  }

  @ParameterizedTest
  @CsvSource({
    "builtins,eval", "torch,FloatTensor", "torch.storage,UntypedStorage", "torch._utils,_rebuild_qtensor",
    "numpy,dtype", "collections,defaultdict", "__torch__,Model", "torch._utils,_rebuild_tensor_v2.__globals__"
  })
  void everyOtherNameIsRefused(String module, String name) throws IOException {
    assertPickleRefused(PickleBuilder.protocol2().global(module, name).op('.').bytes(), module + "." + name);
  }

  @ParameterizedTest
  @ValueSource(ints = {'i', 'o', 0x81, 0x92, 0x82, 0x83, 0x84, 'P', 'S', 'I', 'V', 0x8f, 0x96, 0x97, 0xff, 0})
  void everyOtherOpcodeIsRefused(int opcode) throws IOException {
    assertPickleRefused(
        PickleBuilder.protocol2().op(opcode).raw("os\nsystem\n").op('.').bytes(), "opcode 0x%02x".formatted(opcode));
  }

  @Test
  void tensorsOutsideOfTheirStorage() throws IOException {
    long huge = 1L << 62;
    assertPickleRefused(
        PickleBuilder.tensor("FloatStorage", 6, 0, dims(7), dims(1)), "'w'", "needs 28 bytes", "has 24");
    assertPickleRefused(PickleBuilder.tensor("FloatStorage", 6, 5, dims(2), dims(1)), "'w'", "within its storage");
    assertPickleRefused(PickleBuilder.tensor("FloatStorage", 6, 7, dims(0), dims(1)), "'w'", "offset 7");
    assertPickleRefused(PickleBuilder.tensor("FloatStorage", 6, 0, dims(2), dims(huge)), "'w'", "too large");
    assertPickleRefused(PickleBuilder.tensor("FloatStorage", 6, 0, dims(huge, 8), dims(1, 1)), "'w'", "too large");
    assertPickleRefused(PickleBuilder.tensor("FloatStorage", 6, huge, dims(1), dims(1)), "'w'", "offset");
    assertPickleRefused(PickleBuilder.tensor("FloatStorage", 7, 0, dims(6), dims(1)), "'w'", "7 F32", "24 bytes");
    assertPickleRefused(PickleBuilder.tensor("DoubleStorage", huge, 0, dims(6), dims(1)), "'w'", "24 bytes");
    assertPickleRefused(PickleBuilder.tensor("FloatStorage", 6, -1, dims(1), dims(1)), "not negative", "-1");
    assertPickleRefused(PickleBuilder.tensor("FloatStorage", 6, 0, dims(-1), dims(1)), "not negative", "-1");
    assertPickleRefused(PickleBuilder.tensor("FloatStorage", 6, 0, dims(2), dims(-1)), "not negative", "-1");
    assertPickleRefused(PickleBuilder.tensor("FloatStorage", 6, 0, dims(2, 3), dims(1)), "strides");
    assertPickleRefused(PickleBuilder.tensor("FloatStorage", 6, 0, new long[17], new long[17]), "at most 16 dim");
  }

  @Test
  void repetitionCannotFillTheMemory() throws IOException {
    long huge = 1L << 40;
    assertPickleRefused(PickleBuilder.tensor("FloatStorage", 6, 0, dims(huge), dims(0)), "'w'", "by repetition");
    assertPickleRefused(PickleBuilder.tensor("FloatStorage", 6, 0, dims(3, 3), dims(1, 1)), "'w'", "by repetition");
    var many = PickleBuilder.protocol2().op('}', '(');
    for (int i = 0; i < 2000; i++) {
      many.text("w" + i).tensorValue("FloatStorage", 6000, 0, dims(2, 3000), dims(1, 2));
    }
    assertFileRefused(
        ZipBuilder.torch(many.op('u', '.').bytes(), floats(6000)), "no larger than the file in all");
  }

  @Test
  void damagedPickles() throws IOException {
    byte[] whole = PickleBuilder.tensor("FloatStorage", 6, 0, dims(6), dims(1));
    for (int length = 0; length < whole.length; length++) {
      assertPickleRefused(Arrays.copyOf(whole, length), "pickle");
    }
    assertPickleRefused(Arrays.copyOf(whole, whole.length + 1), "1 more bytes");
    assertPickleRefused(PickleBuilder.protocol2().op('N', 'N', '.').bytes(), "1 more values");
    assertPickleRefused(PickleBuilder.protocol2().op('N', '.').bytes(), "a pickled dict of tensors");
    assertPickleRefused(PickleBuilder.protocol2().op('R').bytes(), "a value on the stack");
    assertPickleRefused(PickleBuilder.protocol2().op('t').bytes(), "a mark");
    assertPickleRefused(PickleBuilder.protocol2().op('h', 3).bytes(), "memo 3");
    assertPickleRefused(PickleBuilder.protocol2().op('N', 'Q').bytes(), "'storage'", "None");
    assertPickleRefused(PickleBuilder.protocol2().op(']', 'N', 'N', 's').bytes(), "a dict to fill");
    assertPickleRefused(PickleBuilder.protocol2().op('}', 'N', 'a').bytes(), "a list to append to");
    assertPickleRefused(PickleBuilder.protocol2().op('}', ']', 'N', 's').bytes(), "key of a dict");
    assertPickleRefused(PickleBuilder.protocol2().op('}', '(', 'N', 'u').bytes(), "value for every key");
    assertPickleRefused(PickleBuilder.protocol2().op('X', 0xff, 0xff, 0xff, 0xff).bytes(), "4294967295 bytes");
    assertPickleRefused(PickleBuilder.protocol2().op(0x8a, 9).raw("123456789").bytes(), "at most 8 bytes");
    assertPickleRefused(
        PickleBuilder.protocol2().op('}').text("epoch").integer(3).op('s', '.').bytes(), "'epoch'", "int 3");
    assertPickleRefused(
        PickleBuilder.protocol2().op('}').text("a").op('N', 's').text("a").op('N', 's', '.').bytes(), "'a' twice");
    assertPickleRefused(new byte[] {(byte) 0x80, 9, '.'}, "protocol 9");
  }

  @Test
  void endlessPicklesEnd() throws IOException {
    byte[] marks = new byte[2_000_000];
    Arrays.fill(marks, (byte) '(');
    assertPickleRefused(marks, "values on the stack");
    byte[] pairs = new byte[2_000_000];
    for (int i = 0; i < pairs.length; i += 2) {
      pairs[i] = 'N';
      pairs[i + 1] = '0';
    }
    assertPickleRefused(pairs, "1000000 opcodes");
    // A list that contains itself, nested into tuples: walking it would never end.
    assertPickleRefused(
        PickleBuilder.protocol2().op('}').text("w").op(']', 'q', 0, 'h', 0, 0x85, 'a', 's', '.').bytes(),
        "a list of 1");
  }

  @Test
  void damagedZips() throws IOException {
    byte[] pickle = PickleBuilder.tensor("FloatStorage", 6, 0, dims(6), dims(1));
    byte[] whole = ZipBuilder.torch(pickle, floats(6));
    for (int length : new int[] {0, 1, 21, 22, 100, whole.length - 23, whole.length - 1}) {
      assertFileRefused(Arrays.copyOf(whole, length), "found no end record");
    }
    assertFileRefused(new ZipBuilder(false).add("data.pkl", pickle).bytes(), "FOLDER/data.pkl", "found 0");
    assertFileRefused(new ZipBuilder(false).add("a/b/data.pkl", pickle).bytes(), "found 0");
    assertFileRefused(
        new ZipBuilder(false).add("a/data.pkl", pickle).add("b/data.pkl", pickle).bytes(), "found 2");
    assertFileRefused(
        new ZipBuilder(false).add("a/data.pkl", pickle).add("a/data.pkl", pickle).bytes(), "two zip entries");
    assertFileRefused(new ZipBuilder(false).add("a/data.pkl", pickle).bytes(), "'w'", "an entry data/0", "none");
    assertFileRefused(new ZipBuilder(false).add("a/data.pkl", pickle, 8).bytes(), "stored entry", "method 8");
    assertFileRefused(
        new ZipBuilder(false).add("a/data.pkl", pickle).add("a/byteorder", Goldens.utf8("big")).bytes(),
        "byteorder", "expected little", "'big'");
  }

  @Test
  void everyFlippedBitEndsInAnExceptionOrATensor() {
    byte[] whole =
        new ZipBuilder(true)
            .add("m/data.pkl", PickleBuilder.tensor("FloatStorage", 6, 0, dims(6), dims(1)))
            .add("m/data/0", floats(6))
            .bytes();
    int refused = 0;
    for (int bit = 0; bit < 8 * whole.length; bit++) {
      whole[bit / 8] ^= (byte) (1 << bit % 8);
      try (Arena arena = Arena.ofConfined()) {
        var file = TorchFile.read(Path.of("flipped.bin"), MemorySegment.ofArray(whole), arena);
        for (String name : file.names()) {
          file.tensor(name).toFloatArray();
        }
      } catch (CheckpointException e) {
        refused++;
      }
      whole[bit / 8] ^= (byte) (1 << bit % 8);
    }
    assertTrue(refused > whole.length, "most of the file is checked");
  }

  @Test
  void legacyFormatIsNamed() throws IOException {
    byte[] legacy = {(byte) 0x80, 2, (byte) 0x8a, 10, 0x6c, (byte) 0xfc, (byte) 0x9c, 0x46, (byte) 0xf9, 0x20};
    assertFileRefused(legacy, "legacy format", "save it again");
  }
}

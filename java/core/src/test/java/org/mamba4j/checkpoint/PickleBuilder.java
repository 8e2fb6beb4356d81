package org.mamba4j.checkpoint;

import java.io.ByteArrayOutputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;

/** Writes pickles opcode by opcode, as torch.save does and as an attacker might. */
final class PickleBuilder {
  private final ByteArrayOutputStream out = new ByteArrayOutputStream();

  static PickleBuilder protocol2() {
    return new PickleBuilder().op(0x80, 2);
  }

  /** A dict with the single tensor {@code w} over the storage {@code data/0}. */
  static byte[] tensor(String storageType, long storageSize, long offset, long[] shape, long[] strides) {
    return protocol2()
        .op('}').text("w")
        .tensorValue(storageType, storageSize, offset, shape, strides)
        .op('s', '.')
        .bytes();
  }

  PickleBuilder tensorValue(String storageType, long storageSize, long offset, long[] shape, long[] strides) {
    return global("torch._utils", "_rebuild_tensor_v2").op('(')
        .op('(').text("storage").global("torch", storageType).text("0").text("cpu").integer(storageSize).op('t', 'Q')
        .integer(offset)
        .tuple(shape)
        .tuple(strides)
        .op(0x89)
        .global("collections", "OrderedDict").op(')', 'R')
        .op('t', 'R');
  }

  PickleBuilder op(int... opcodes) {
    for (int opcode : opcodes) {
      out.write(opcode);
    }
    return this;
  }

  PickleBuilder text(String text) {
    byte[] utf8 = text.getBytes(StandardCharsets.UTF_8);
    op('X');
    out.writeBytes(ByteBuffer.allocate(4).order(ByteOrder.LITTLE_ENDIAN).putInt(utf8.length).array());
    out.writeBytes(utf8);
    return this;
  }

  PickleBuilder raw(String latin1) {
    out.writeBytes(latin1.getBytes(StandardCharsets.ISO_8859_1));
    return this;
  }

  PickleBuilder integer(long value) {
    op(0x8a, 8);
    out.writeBytes(ByteBuffer.allocate(8).order(ByteOrder.LITTLE_ENDIAN).putLong(value).array());
    return this;
  }

  PickleBuilder tuple(long... values) {
    op('(');
    for (long value : values) {
      integer(value);
    }
    return op('t');
  }

  PickleBuilder global(String module, String name) {
    op('c');
    out.writeBytes((module + "\n" + name + "\n").getBytes(StandardCharsets.UTF_8));
    return this;
  }

  byte[] bytes() {
    return out.toByteArray();
  }
}

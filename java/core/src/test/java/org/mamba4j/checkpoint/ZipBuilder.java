package org.mamba4j.checkpoint;

import java.io.ByteArrayOutputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.zip.CRC32;

/** Writes zip files of stored entries, with the zip64 records that java.util.zip uses only beyond 4 GiB. */
final class ZipBuilder {
  private final boolean zip64;
  private final ByteArrayOutputStream out = new ByteArrayOutputStream();
  private final ByteArrayOutputStream directory = new ByteArrayOutputStream();
  private int entries;

  ZipBuilder(boolean zip64) {
    this.zip64 = zip64;
  }

  /** The zip of a state dict: pickle and one storage. */
  static byte[] torch(byte[] pickle, byte[] storage) {
    return new ZipBuilder(false)
        .add("archive/data.pkl", pickle)
        .add("archive/byteorder", "little".getBytes(StandardCharsets.US_ASCII))
        .add("archive/data/0", storage)
        .bytes();
  }

  ZipBuilder add(String name, byte[] content) {
    return add(name, content, 0);
  }

  ZipBuilder add(String name, byte[] content, int method) {
    var crc = new CRC32();
    crc.update(content);
    byte[] utf8 = name.getBytes(StandardCharsets.UTF_8);
    int offset = out.size();
    out.writeBytes(
        record(30)
            .putInt(0x04034b50).putShort((short) 20).putShort((short) 0).putShort((short) method).putInt(0)
            .putInt((int) crc.getValue()).putInt(content.length).putInt(content.length)
            .putShort((short) utf8.length).putShort((short) 0)
            .array());
    out.writeBytes(utf8);
    out.writeBytes(content);
    int size = zip64 ? -1 : content.length;
    directory.writeBytes(
        record(46)
            .putInt(0x02014b50).putShort((short) 20).putShort((short) 20).putShort((short) 0).putShort((short) method)
            .putInt(0).putInt((int) crc.getValue()).putInt(size).putInt(size)
            .putShort((short) utf8.length).putShort((short) (zip64 ? 32 : 0)).putShort((short) 0).putShort((short) 0)
            .putShort((short) 0).putInt(0).putInt(zip64 ? -1 : offset)
            .array());
    directory.writeBytes(utf8);
    if (zip64) {
      directory.writeBytes( // an unrelated field before the one that counts
          record(32)
              .putShort((short) 0x7075).putShort((short) 0).putShort((short) 1).putShort((short) 24)
              .putLong(content.length).putLong(content.length).putLong(offset)
              .array());
    }
    entries++;
    return this;
  }

  byte[] bytes() {
    int start = out.size();
    var all = new ByteArrayOutputStream();
    all.writeBytes(out.toByteArray());
    all.writeBytes(directory.toByteArray());
    if (zip64) {
      int end64 = all.size();
      all.writeBytes(
          record(56)
              .putInt(0x06064b50).putLong(44).putShort((short) 45).putShort((short) 45).putInt(0).putInt(0)
              .putLong(entries).putLong(entries).putLong(directory.size()).putLong(start)
              .array());
      all.writeBytes(record(20).putInt(0x07064b50).putInt(0).putLong(end64).putInt(1).array());
    }
    all.writeBytes(
        record(22)
            .putInt(0x06054b50).putShort((short) 0).putShort((short) 0)
            .putShort((short) (zip64 ? -1 : entries)).putShort((short) (zip64 ? -1 : entries))
            .putInt(zip64 ? -1 : directory.size()).putInt(zip64 ? -1 : start).putShort((short) 0)
            .array());
    return all.toByteArray();
  }

  private static ByteBuffer record(int size) {
    return ByteBuffer.allocate(size).order(ByteOrder.LITTLE_ENDIAN);
  }
}

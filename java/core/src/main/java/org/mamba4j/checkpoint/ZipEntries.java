package org.mamba4j.checkpoint;

import static org.mamba4j.checkpoint.CheckpointException.in;
import static org.mamba4j.checkpoint.CheckpointException.mismatch;
import static org.mamba4j.checkpoint.CheckpointException.quote;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.SequencedMap;

/**
 * The entries of a zip file (APPNOTE 6.3, with zip64) as slices of its memory, which {@link java.util.zip.ZipFile}
 * cannot give. Only stored entries, as PyTorch writes them.
 */
final class ZipEntries {
  private static final ValueLayout.OfShort U16 = ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfInt U32 = ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfLong U64 = ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

  private static final int LOCAL_HEADER = 0x04034b50;
  private static final int CENTRAL_HEADER = 0x02014b50;
  private static final int END_RECORD = 0x06054b50;
  private static final int ZIP64_END_RECORD = 0x06064b50;
  private static final int ZIP64_LOCATOR = 0x07064b50;

  private static final int LOCAL_HEADER_SIZE = 30;
  private static final int CENTRAL_HEADER_SIZE = 46;
  private static final int END_RECORD_SIZE = 22;
  private static final int ZIP64_END_RECORD_SIZE = 56;
  private static final int ZIP64_LOCATOR_SIZE = 20;
  private static final int MAX_COMMENT = 0xffff;
  private static final int ZIP64_EXTRA = 1;
  private static final long SATURATED = 0xffff_ffffL; // the real value is in the zip64 extra field
  private static final int MAX_ENTRIES = 100_000;

  private final Path file;
  private final MemorySegment zip;

  private ZipEntries(Path file, MemorySegment zip) {
    this.file = file;
    this.zip = zip;
  }

  /** Name to content of every entry, in the order of the central directory. */
  static SequencedMap<String, MemorySegment> read(Path file, MemorySegment zip) throws CheckpointException {
    return new ZipEntries(file, zip).read();
  }

  private SequencedMap<String, MemorySegment> read() throws CheckpointException {
    long end = findEndRecord();
    long count = u16(end + 10);
    long at = u32(end + 16);
    long locator = end - ZIP64_LOCATOR_SIZE;
    if (locator >= 0 && zip.get(U32, locator) == ZIP64_LOCATOR) {
      long end64 = zip.get(U64, locator + 8);
      require(end64, ZIP64_END_RECORD_SIZE, ZIP64_END_RECORD, "zip64 end record");
      count = zip.get(U64, end64 + 32);
      at = zip.get(U64, end64 + 48);
    }
    if (count < 0 || count > MAX_ENTRIES) {
      throw mismatch(file, "zip entries", "at most " + MAX_ENTRIES, Long.toUnsignedString(count));
    }
    var entries = new LinkedHashMap<String, MemorySegment>();
    for (long i = 0; i < count; i++) {
      require(at, CENTRAL_HEADER_SIZE, CENTRAL_HEADER, "central directory entry " + i);
      int nameLength = u16(at + 28);
      int extraLength = u16(at + 30);
      long next = at + CENTRAL_HEADER_SIZE + nameLength + extraLength + u16(at + 32);
      if (next > zip.byteSize()) {
        throw mismatch(file, "central directory entry " + i, "to end within the file", "an end at " + next);
      }
      byte[] name = zip.asSlice(at + CENTRAL_HEADER_SIZE, nameLength).toArray(ValueLayout.JAVA_BYTE);
      String text = new String(name, StandardCharsets.UTF_8);
      if (entries.put(text, content(at, text, at + CENTRAL_HEADER_SIZE + nameLength, extraLength)) != null) {
        throw in(file, "two zip entries are called " + quote(text));
      }
      at = next;
    }
    return entries;
  }

  private long findEndRecord() throws CheckpointException {
    long last = zip.byteSize() - END_RECORD_SIZE;
    for (long at = last; at >= Math.max(0, last - MAX_COMMENT); at--) {
      if (zip.get(U32, at) == END_RECORD && u16(at + 20) == last - at) {
        return at;
      }
    }
    throw in(file, "expected a zip file (torch.save of PyTorch 1.6 or later), found no end record; perhaps truncated");
  }

  private MemorySegment content(long header, String name, long extra, int extraLength) throws CheckpointException {
    if ((u16(header + 8) & 1) != 0) {
      throw mismatch(file, "zip entry " + quote(name), "plain data", "encrypted data");
    }
    int method = u16(header + 10);
    if (method != 0) {
      throw mismatch(file, "zip entry " + quote(name), "a stored entry (method 0)", "compression method " + method);
    }
    long compressed = u32(header + 20);
    long size = u32(header + 24);
    long local = u32(header + 42);
    if (compressed == SATURATED || size == SATURATED || local == SATURATED) {
      long at = zip64Extra(name, extra, extra + extraLength);
      long fieldsEnd = at + u16(at - 2);
      if (size == SATURATED) {
        size = zip64Field(name, at, fieldsEnd);
        at += 8;
      }
      if (compressed == SATURATED) {
        compressed = zip64Field(name, at, fieldsEnd);
        at += 8;
      }
      if (local == SATURATED) {
        local = zip64Field(name, at, fieldsEnd);
      }
    }
    if (size != compressed) {
      throw mismatch(file, "zip entry " + quote(name), "equal sizes for a stored entry", size + " and " + compressed);
    }
    require(local, LOCAL_HEADER_SIZE, LOCAL_HEADER, "local header of zip entry " + quote(name));
    long begin = local + LOCAL_HEADER_SIZE + u16(local + 26) + u16(local + 28);
    if (begin > zip.byteSize() || size < 0 || size > zip.byteSize() - begin) {
      throw mismatch(file, "zip entry " + quote(name), "data within the file", size + " bytes at " + begin);
    }
    return zip.asSlice(begin, size);
  }

  /** Where the fields of the zip64 extra begin; its length stands in the two bytes before. */
  private long zip64Extra(String name, long from, long to) throws CheckpointException {
    long at = from;
    while (at + 4 <= to) {
      long next = at + 4 + u16(at + 2);
      if (u16(at) == ZIP64_EXTRA && next <= to) {
        return at + 4;
      }
      at = next;
    }
    throw mismatch(file, "zip entry " + quote(name), "a zip64 extra field", "none");
  }

  private long zip64Field(String name, long at, long end) throws CheckpointException {
    if (at + 8 > end) {
      throw mismatch(file, "zip entry " + quote(name), "a complete zip64 extra field", "a shorter one");
    }
    return zip.get(U64, at);
  }

  private void require(long at, long size, int signature, String what) throws CheckpointException {
    if (at < 0 || at > zip.byteSize() - size) {
      throw mismatch(file, what, "a place within the file", "offset " + Long.toUnsignedString(at));
    }
    if (zip.get(U32, at) != signature) {
      throw mismatch(file, what, "signature %08x".formatted(signature), "%08x".formatted(zip.get(U32, at)));
    }
  }

  private int u16(long at) {
    return Short.toUnsignedInt(zip.get(U16, at));
  }

  private long u32(long at) {
    return Integer.toUnsignedLong(zip.get(U32, at));
  }
}

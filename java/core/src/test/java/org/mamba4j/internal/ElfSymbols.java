package org.mamba4j.internal;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Set;
import java.util.TreeSet;

/** What a 64-bit ELF library exports, read from its section SHT_DYNSYM. */
final class ElfSymbols {
  private static final int SHT_DYNSYM = 11;
  private static final int SHN_UNDEF = 0;
  private static final int SHN_ABS = 0xfff1; // version names

  private ElfSymbols() {}

  static Set<String> exported(Path library) throws IOException {
    ByteBuffer elf = ByteBuffer.wrap(Files.readAllBytes(library)).order(ByteOrder.LITTLE_ENDIAN);
    long sectionTable = elf.getLong(0x28);
    int sectionSize = elf.getShort(0x3a);
    int sections = elf.getShort(0x3c);
    Set<String> names = new TreeSet<>();
    for (int i = 0; i < sections; i++) {
      int section = Math.toIntExact(sectionTable + (long) i * sectionSize);
      if (elf.getInt(section + 4) == SHT_DYNSYM) {
        int strings = Math.toIntExact(sectionTable + (long) elf.getInt(section + 0x28) * sectionSize);
        long stringOffset = elf.getLong(strings + 0x18);
        long offset = elf.getLong(section + 0x18);
        long end = offset + elf.getLong(section + 0x20);
        for (int symbol = Math.toIntExact(offset); symbol < end; symbol += 24) {
          int where = Short.toUnsignedInt(elf.getShort(symbol + 6));
          if (where != SHN_UNDEF && where != SHN_ABS) {
            names.add(string(elf, Math.toIntExact(stringOffset + elf.getInt(symbol))));
          }
        }
      }
    }
    return names;
  }

  private static String string(ByteBuffer bytes, int start) {
    int end = start;
    while (bytes.get(end) != 0) {
      end++;
    }
    return new String(bytes.array(), start, end - start, StandardCharsets.US_ASCII);
  }
}

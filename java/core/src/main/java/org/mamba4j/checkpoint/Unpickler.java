package org.mamba4j.checkpoint;

import static org.mamba4j.checkpoint.CheckpointException.in;
import static org.mamba4j.checkpoint.CheckpointException.quote;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.mamba4j.DType;
import org.mamba4j.Tensor;

/**
 * Reads the pickle inside of a PyTorch file. A pickle is a program for a stack machine that may name any Python
 * callable; this machine knows numbers, strings, tuples, lists, dicts and tensors. Any other name is refused as soon
 * as it is mentioned, so that there is nothing that a file could run.
 *
 * <p>Python values become: tuple {@code Object[]}, list {@link ArrayList}, dict {@link LinkedHashMap}, int
 * {@link Long}, float {@link Double}, str {@link String}, bytes {@code byte[]}, None {@link Constant#NONE}.
 */
final class Unpickler {
  static final int MAX_BYTES = 64 << 20;
  private static final int MAX_OPCODES = 1_000_000;
  private static final int MAX_STACK = 100_000;

  /** A storage: {@code size} elements in the entry {@code data/key}. */
  record Storage(DType dtype, String key, long size) {}

  /** A tensor as a window on a storage; offset and strides in elements. */
  record StoredTensor(Storage storage, long offset, long[] shape, long[] strides) {}

  private record StorageType(DType dtype) {}

  private enum Constant {
    NONE,
    MARK
  }

  private enum Callable {
    REBUILD_TENSOR,
    REBUILD_PARAMETER,
    ORDERED_DICT
  }

  private static final Map<String, Object> GLOBALS =
      Map.ofEntries(
          Map.entry("torch._utils._rebuild_tensor_v2", Callable.REBUILD_TENSOR),
          Map.entry("torch._utils._rebuild_parameter", Callable.REBUILD_PARAMETER),
          Map.entry("collections.OrderedDict", Callable.ORDERED_DICT),
          Map.entry("torch.DoubleStorage", new StorageType(DType.F64)),
          Map.entry("torch.FloatStorage", new StorageType(DType.F32)),
          Map.entry("torch.HalfStorage", new StorageType(DType.F16)),
          Map.entry("torch.BFloat16Storage", new StorageType(DType.BF16)),
          Map.entry("torch.LongStorage", new StorageType(DType.I64)),
          Map.entry("torch.IntStorage", new StorageType(DType.I32)),
          Map.entry("torch.ShortStorage", new StorageType(DType.I16)),
          Map.entry("torch.CharStorage", new StorageType(DType.I8)),
          Map.entry("torch.ByteStorage", new StorageType(DType.U8)),
          Map.entry("torch.BoolStorage", new StorageType(DType.BOOL)));

  private final Path file;
  private final ByteBuffer in;
  private final List<Object> stack = new ArrayList<>();
  private final Map<Long, Object> memo = new HashMap<>();

  private Unpickler(Path file, byte[] pickle) {
    this.file = file;
    this.in = ByteBuffer.wrap(pickle).order(ByteOrder.LITTLE_ENDIAN);
  }

  /** The tensors of a pickled state dict by name. */
  static Map<String, StoredTensor> stateDict(Path file, byte[] pickle) throws CheckpointException {
    if (pickle.length > MAX_BYTES) {
      throw in(file, "expected a pickle of at most " + MAX_BYTES + " bytes, found " + pickle.length);
    }
    var unpickler = new Unpickler(file, pickle);
    if (!(unpickler.run() instanceof LinkedHashMap<?, ?> dict)) {
      throw in(file, "expected a pickled dict of tensors, found something else");
    }
    var tensors = new LinkedHashMap<String, StoredTensor>();
    for (var entry : dict.entrySet()) {
      if (!(entry.getKey() instanceof String name)) {
        throw in(file, "expected names as keys of the pickled dict, found " + unpickler.describe(entry.getKey()));
      }
      if (!(entry.getValue() instanceof StoredTensor tensor)) {
        throw CheckpointException.mismatch(
            file, "entry " + quote(name), "a tensor", unpickler.describe(entry.getValue()));
      }
      tensors.put(name, tensor);
    }
    return tensors;
  }

  private Object run() throws CheckpointException {
    for (int count = 0; count < MAX_OPCODES; count++) {
      int opcode = next(1, "an opcode").get() & 0xff;
      if (opcode == '.') {
        Object result = pop();
        if (!stack.isEmpty() || in.hasRemaining()) {
          throw wrong("the end behind one value", stack.size() + " more values, " + in.remaining() + " more bytes");
        }
        return result;
      }
      execute(opcode);
    }
    throw wrong("at most " + MAX_OPCODES + " opcodes", "more");
  }

  private void execute(int opcode) throws CheckpointException {
    switch (opcode) {
      case 0x80 -> protocol();
      case 0x95 -> frame(next(8, "a frame length").getLong());
      case '(' -> push(Constant.MARK);
      case '0' -> pop();
      case '1' -> popToMark();
      case '2' -> push(top());

      case 'N' -> push(Constant.NONE);
      case 0x88 -> push(Boolean.TRUE);
      case 0x89 -> push(Boolean.FALSE);
      case 'K' -> push(byteLength());
      case 'M' -> push((long) Short.toUnsignedInt(next(2, "an int").getShort()));
      case 'J' -> push((long) next(4, "an int").getInt());
      case 0x8a -> push(longInteger(byteLength()));
      case 0x8b -> push(longInteger(intLength()));
      case 'G' -> push(next(8, "a float").order(ByteOrder.BIG_ENDIAN).getDouble());

      case 'X' -> push(text(intLength()));
      case 0x8c -> push(text(byteLength()));
      case 0x8d -> push(text(next(8, "a length").getLong()));
      case 'U' -> push(new String(bytes(byteLength()), StandardCharsets.ISO_8859_1));
      case 'T' -> push(new String(bytes(intLength()), StandardCharsets.ISO_8859_1));
      case 'C' -> push(bytes(byteLength()));
      case 'B' -> push(bytes(intLength()));

      case ')' -> push(new Object[0]);
      case 0x85 -> push(tuple(1));
      case 0x86 -> push(tuple(2));
      case 0x87 -> push(tuple(3));
      case 't' -> push(popToMark().toArray());
      case ']' -> push(new ArrayList<>());
      case 'a' -> append(List.of(pop()));
      case 'e' -> append(popToMark());
      case '}' -> push(new LinkedHashMap<>());
      case 's' -> setItems(Arrays.asList(tuple(2)));
      case 'u' -> setItems(popToMark());

      case 'q' -> memo.put(byteLength(), top());
      case 'r' -> memo.put(intLength(), top());
      case 0x94 -> memo.put((long) memo.size(), top());
      case 'h' -> push(recall(byteLength()));
      case 'j' -> push(recall(intLength()));

      case 'c' -> push(global(line(), line()));
      case 0x93 -> stackGlobal();
      case 'Q' -> push(storage(pop()));
      case 'R' -> reduce();
      case 'b' -> build();
      default -> throw wrong("an opcode that torch.save writes", "opcode 0x%02x".formatted(opcode));
    }
  }

  private void protocol() throws CheckpointException {
    long version = byteLength();
    if (version < 2 || version > 5) {
      throw wrong("protocol 2 to 5", "protocol " + version);
    }
  }

  private Object global(String module, String name) throws CheckpointException {
    Object known = GLOBALS.get(module + "." + name);
    if (known == null) {
      throw in(
          file,
          "the pickle refers to %s; only tensors and plain containers are read, nothing is ever executed"
              .formatted(quote(module + "." + name)));
    }
    return known;
  }

  private void stackGlobal() throws CheckpointException {
    if (!(pop() instanceof String name) || !(pop() instanceof String module)) {
      throw wrong("a module and a name", "other values");
    }
    push(global(module, name));
  }

  private void reduce() throws CheckpointException {
    if (!(pop() instanceof Object[] arguments)) {
      throw wrong("a tuple of arguments", "another value");
    }
    Object function = pop();
    if (!(function instanceof Callable callable)) {
      throw wrong("a function to call", describe(function));
    }
    push(
        switch (callable) {
          case REBUILD_TENSOR -> rebuildTensor(arguments);
          case REBUILD_PARAMETER -> rebuildParameter(arguments);
          case ORDERED_DICT -> orderedDict(arguments);
        });
  }

  /** (storage, storage_offset, size, stride, requires_grad, backward_hooks[, metadata]). */
  private StoredTensor rebuildTensor(Object[] a) throws CheckpointException {
    if ((a.length != 6 && a.length != 7)
        || !(a[0] instanceof Storage storage)
        || !(a[1] instanceof Long offset)
        || !(a[2] instanceof Object[] size)
        || !(a[3] instanceof Object[] stride)) {
      throw wrong("_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)", "other arguments");
    }
    if (a.length == 7 && a[6] != Constant.NONE && !(a[6] instanceof LinkedHashMap<?, ?> m && m.isEmpty())) {
      throw wrong("a tensor without metadata such as conjugation", describe(a[6]));
    }
    if (size.length != stride.length) {
      throw wrong("as many strides as dimensions", size.length + " dimensions and " + stride.length + " strides");
    }
    return new StoredTensor(storage, natural(offset), naturals(size), naturals(stride));
  }

  /** (data, requires_grad, backward_hooks). */
  private StoredTensor rebuildParameter(Object[] a) throws CheckpointException {
    if (a.length != 3 || !(a[0] instanceof StoredTensor data)) {
      throw wrong("_rebuild_parameter(tensor, requires_grad, hooks)", "other arguments");
    }
    return data;
  }

  private Object orderedDict(Object[] a) throws CheckpointException {
    if (a.length != 0) {
      throw wrong("OrderedDict()", a.length + " arguments");
    }
    return new LinkedHashMap<>();
  }

  /** A persistent id: ('storage', storage type, key, location, number of elements). */
  private Storage storage(Object id) throws CheckpointException {
    if (!(id instanceof Object[] a)
        || a.length != 5
        || !"storage".equals(a[0])
        || !(a[1] instanceof StorageType type)
        || !(a[2] instanceof String key)
        || !(a[3] instanceof String)
        || !(a[4] instanceof Long size)) {
      throw wrong("('storage', type, key, location, size)", describe(id));
    }
    return new Storage(type.dtype(), key, natural(size));
  }

  /** Attributes of a dict, such as the versions in a module's state dict, say nothing about tensors. */
  private void build() throws CheckpointException {
    pop();
    if (!(top() instanceof LinkedHashMap<?, ?>)) {
      throw wrong("attributes of a dict", "attributes of " + describe(top()));
    }
  }

  private void append(List<Object> values) throws CheckpointException {
    if (!(top() instanceof ArrayList<?>)) {
      throw wrong("a list to append to", describe(top()));
    }
    @SuppressWarnings("unchecked") // every list on the stack was made here for any values
    var list = (ArrayList<Object>) top();
    list.addAll(values);
  }

  private void setItems(List<Object> items) throws CheckpointException {
    if (!(top() instanceof LinkedHashMap<?, ?>)) {
      throw wrong("a dict to fill", describe(top()));
    }
    if (items.size() % 2 != 0) {
      throw wrong("a value for every key", items.size() + " items");
    }
    @SuppressWarnings("unchecked") // every dict on the stack was made here for any keys and values
    var dict = (LinkedHashMap<Object, Object>) top();
    for (int i = 0; i < items.size(); i += 2) {
      Object key = items.get(i);
      if (!(key instanceof String) && !(key instanceof Long)) {
        throw wrong("a str or int as key of a dict", describe(key));
      }
      if (dict.put(key, items.get(i + 1)) != null) {
        throw wrong("every key once", "key " + quote(key.toString()) + " twice");
      }
    }
  }

  private long[] naturals(Object[] values) throws CheckpointException {
    if (values.length > Tensor.MAX_RANK) {
      throw wrong("at most " + Tensor.MAX_RANK + " dimensions", values.length);
    }
    var result = new long[values.length];
    for (int i = 0; i < result.length; i++) {
      result[i] = natural(values[i]);
    }
    return result;
  }

  private long natural(Object value) throws CheckpointException {
    if (!(value instanceof Long number) || number < 0) {
      throw wrong("an int that is not negative", value instanceof Long n ? n : describe(value));
    }
    return number;
  }

  private Object recall(long index) throws CheckpointException {
    Object value = memo.get(index);
    if (value == null) {
      throw wrong("a value in memo " + index, "none");
    }
    return value;
  }

  private Object[] tuple(int length) throws CheckpointException {
    var values = new Object[length];
    for (int i = length - 1; i >= 0; i--) {
      values[i] = pop();
    }
    return values;
  }

  private List<Object> popToMark() throws CheckpointException {
    int mark = stack.lastIndexOf(Constant.MARK);
    if (mark < 0) {
      throw wrong("a mark on the stack", "none");
    }
    List<Object> tail = stack.subList(mark, stack.size());
    List<Object> values = new ArrayList<>(tail.subList(1, tail.size()));
    tail.clear();
    return values;
  }

  private Object pop() throws CheckpointException {
    Object value = top();
    stack.removeLast();
    return value;
  }

  private Object top() throws CheckpointException {
    if (stack.isEmpty() || stack.getLast() == Constant.MARK) {
      throw wrong("a value on the stack", "none");
    }
    return stack.getLast();
  }

  private void push(Object value) throws CheckpointException {
    if (stack.size() == MAX_STACK) {
      throw wrong("at most " + MAX_STACK + " values on the stack", "more");
    }
    stack.add(value);
  }

  /** The next {@code length} bytes as a little-endian buffer. */
  private ByteBuffer next(long length, String what) throws CheckpointException {
    if (length < 0 || length > in.remaining()) {
      throw wrong(what + " of " + Long.toUnsignedString(length) + " bytes", in.remaining() + " bytes up to the end");
    }
    ByteBuffer slice = in.slice(in.position(), (int) length).order(ByteOrder.LITTLE_ENDIAN);
    in.position(in.position() + (int) length);
    return slice;
  }

  private long byteLength() throws CheckpointException {
    return Byte.toUnsignedLong(next(1, "a byte").get());
  }

  private long intLength() throws CheckpointException {
    return Integer.toUnsignedLong(next(4, "a length").getInt());
  }

  /** Frames help readers of streams; here they only have to be possible. */
  private void frame(long length) throws CheckpointException {
    if (length < 0 || length > in.remaining()) {
      throw wrong("a frame within the pickle", Long.toUnsignedString(length) + " bytes");
    }
  }

  private byte[] bytes(long length) throws CheckpointException {
    ByteBuffer slice = next(length, "a string");
    var copy = new byte[slice.remaining()];
    slice.get(copy);
    return copy;
  }

  private String text(long length) throws CheckpointException {
    return new String(bytes(length), StandardCharsets.UTF_8);
  }

  private String line() throws CheckpointException {
    int begin = in.position();
    while (in.hasRemaining()) {
      if (in.get() == '\n') {
        return new String(in.array(), begin, in.position() - 1 - begin, StandardCharsets.UTF_8);
      }
    }
    throw wrong("a name that ends with a line feed", "the end");
  }

  private long longInteger(long length) throws CheckpointException {
    if (length > Long.BYTES) {
      throw wrong("an int of at most 8 bytes", length + " bytes");
    }
    byte[] littleEndian = bytes(length);
    long value = littleEndian.length > 0 && littleEndian[littleEndian.length - 1] < 0 ? -1 : 0;
    for (int i = littleEndian.length - 1; i >= 0; i--) {
      value = value << 8 | littleEndian[i] & 0xff;
    }
    return value;
  }

  private String describe(Object value) {
    return switch (value) {
      case Constant c -> c == Constant.NONE ? "None" : "a mark";
      case Object[] tuple -> "a tuple of " + tuple.length;
      case List<?> list -> "a list of " + list.size();
      case Map<?, ?> dict -> "a dict of " + dict.size();
      case String text -> "the str " + quote(text);
      case Long number -> "the int " + number;
      case Double number -> "the float " + number;
      case Boolean flag -> flag ? "True" : "False";
      case byte[] bytes -> bytes.length + " bytes";
      case Storage _ -> "a storage";
      case StoredTensor _ -> "a tensor";
      default -> "a function or class";
    };
  }

  private CheckpointException wrong(String expected, Object found) {
    return in(file, "pickle, before byte %d: expected %s, found %s".formatted(in.position(), expected, found));
  }
}

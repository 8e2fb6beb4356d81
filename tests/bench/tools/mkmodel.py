#!/usr/bin/python3
"""Writes models of published shapes with deterministic random weights, for benchmarks that need the very same weights in
mamba4j and in its peers.

usage: mkmodel.py SHAPE FORMAT OUT

  SHAPE   mamba-tiny, mamba-130m, mamba-1.4b, mamba2-130m, mamba2-1.3b
  FORMAT  hf, hf16              folder OUT in the Hugging Face layout, F32 or F16
          f32, f16, bf16, q8_0  GGUF file OUT

Every tensor has a generator of its own, seeded by its name, so that all formats hold the same weights (rounded, in all
but f32). Needs numpy (Debian: python3-numpy).
"""
import json
import os
import struct
import sys
import zlib

import numpy as np

SEED = 1234
D_CONV = 4
SHAPES = {
    "mamba-tiny": dict(family=1, d_model=128, n_layer=3, d_state=16, dt_rank=8, vocab=512),
    "mamba-130m": dict(family=1, d_model=768, n_layer=24, d_state=16, dt_rank=48, vocab=50280),
    "mamba-1.4b": dict(family=1, d_model=2048, n_layer=48, d_state=16, dt_rank=128, vocab=50280),
    "mamba2-130m": dict(family=2, d_model=768, n_layer=24, d_state=128, headdim=64, n_groups=1, vocab=50288),
    "mamba2-1.3b": dict(family=2, d_model=2048, n_layer=48, d_state=128, headdim=64, n_groups=1, vocab=50288),
}


# ---- Weights: the initialisation of the Mamba papers, with some spread where it would be constant ----


def generator(name):
    return np.random.default_rng([SEED, zlib.crc32(name.encode())])


def normal(std, mean=0.0):
    def draw(name, shape):
        values = generator(name).standard_normal(shape, dtype=np.float32)
        values *= np.float32(std)
        return values if mean == 0 else np.float32(mean) + values

    return draw


def uniform_conv(name, shape):
    return (generator(name).random(shape) - 0.5).astype(np.float32)


def dt_proj(name, shape):
    return ((generator(name).random(shape) * 2 - 1) * shape[1] ** -0.5).astype(np.float32)


def dt_bias(name, shape):
    """softplus(bias) is log-uniform between 0.001 and 0.1."""
    u = generator(name).random(shape)
    dt = np.exp(u * (np.log(0.1) - np.log(1e-3)) + np.log(1e-3))
    return (dt + np.log(-np.expm1(-dt))).astype(np.float32)


def a_log_s4d(name, shape):
    """A = -1, -2, ..., -d_state in every channel."""
    return np.tile(np.log(np.arange(1, shape[1] + 1, dtype=np.float64)).astype(np.float32), (shape[0], 1))


def a_log_heads(name, shape):
    """A uniform between -1 and -16."""
    return np.log(1 + 15 * generator(name).random(shape)).astype(np.float32)


class Tensor:
    def __init__(self, hf, shape, gguf, draw, gguf_shape=None, always_f32=False, to_gguf=None):
        self.hf, self.shape, self.gguf, self.draw = hf, tuple(shape), gguf, draw
        self.gguf_shape = tuple(gguf_shape or shape)
        self.always_f32 = always_f32 or len(self.gguf_shape) == 1  # in GGUF
        self.to_gguf = to_gguf or (lambda values: values)

    def values(self):
        values = self.draw(self.hf, self.shape)
        assert values.shape == self.shape and values.dtype == np.float32, self.hf
        return values


def tensors(c):
    """All tensors of a model in the order of the files; GGUF keeps A = -exp(A_log)."""
    d, n = c["d_model"], c["d_state"]
    inner = 2 * d
    scale = normal(0.1, mean=1)
    negative_exp = lambda values: -np.exp(values)
    yield Tensor("backbone.embeddings.weight", (c["vocab"], d), "token_embd.weight", normal(0.02))
    for i in range(c["n_layer"]):
        layer, mixer, blk = f"backbone.layers.{i}.", f"backbone.layers.{i}.mixer.", f"blk.{i}."
        yield Tensor(layer + "norm.weight", (d,), blk + "attn_norm.weight", scale)
        if c["family"] == 1:
            r, channels, rows = c["dt_rank"], inner, 2 * inner
        else:
            heads, groups = inner // c["headdim"], c["n_groups"]
            channels = inner + 2 * groups * n
            rows = inner + channels + heads
        yield Tensor(mixer + "in_proj.weight", (rows, d), blk + "ssm_in.weight", normal(d**-0.5))
        yield Tensor(mixer + "conv1d.weight", (channels, 1, D_CONV), blk + "ssm_conv1d.weight", uniform_conv,
                     (channels, D_CONV), True)
        yield Tensor(mixer + "conv1d.bias", (channels,), blk + "ssm_conv1d.bias", normal(0.1))
        if c["family"] == 1:
            yield Tensor(mixer + "x_proj.weight", (r + 2 * n, inner), blk + "ssm_x.weight", normal(inner**-0.5 * 2))
            yield Tensor(mixer + "dt_proj.weight", (inner, r), blk + "ssm_dt.weight", dt_proj)
            yield Tensor(mixer + "dt_proj.bias", (inner,), blk + "ssm_dt.bias", dt_bias)
            yield Tensor(mixer + "A_log", (inner, n), blk + "ssm_a", a_log_s4d, None, True, negative_exp)
            yield Tensor(mixer + "D", (inner,), blk + "ssm_d", scale)
        else:
            yield Tensor(mixer + "dt_bias", (heads,), blk + "ssm_dt.bias", dt_bias)
            yield Tensor(mixer + "A_log", (heads,), blk + "ssm_a", a_log_heads, (heads, 1), True, negative_exp)
            yield Tensor(mixer + "D", (heads,), blk + "ssm_d", scale, (heads, 1), True)
            yield Tensor(mixer + "norm.weight", (inner,), blk + "ssm_norm.weight", scale, (groups, inner // groups), True)
        yield Tensor(mixer + "out_proj.weight", (d, inner), blk + "ssm_out.weight", normal(inner**-0.5))
    yield Tensor("backbone.norm_f.weight", (d,), "output_norm.weight", scale)


# ---- Hugging Face folder ----


def write_hf(c, folder, half):
    os.makedirs(folder, exist_ok=True)
    header, offset, width = {}, 0, 2 if half else 4
    for t in tensors(c):
        size = width * int(np.prod(t.shape))
        header[t.hf] = {"dtype": "F16" if half else "F32", "shape": list(t.shape), "data_offsets": [offset, offset + size]}
        offset += size
    header["__metadata__"] = {"format": "pt"}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for t in tensors(c):
            out.write(t.values().astype(np.float16 if half else np.float32).tobytes())
    with open(os.path.join(folder, "config.json"), "w") as out:
        json.dump(hf_config(c, half), out, indent=1)


def hf_config(c, half):
    d, first = c["d_model"], c["family"] == 1
    config = dict(
        architectures=["MambaForCausalLM" if first else "Mamba2ForCausalLM"], model_type="mamba" if first else "mamba2",
        hidden_size=d, state_size=c["d_state"], num_hidden_layers=c["n_layer"], conv_kernel=D_CONV, expand=2,
        use_bias=False, use_conv_bias=True, hidden_act="silu", layer_norm_epsilon=1e-5, rms_norm=True,
        residual_in_fp32=True, vocab_size=c["vocab"], tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
        pad_token_id=0, time_step_min=1e-3, time_step_max=0.1, time_step_floor=1e-4,
        torch_dtype="float16" if half else "float32")
    if first:
        config.update(intermediate_size=2 * d, time_step_rank=c["dt_rank"])
    else:
        config.update(head_dim=c["headdim"], num_heads=2 * d // c["headdim"], n_groups=c["n_groups"], chunk_size=256,
                      time_step_limit=[0.0, float("inf")])
    return config


# ---- GGUF: github.com/ggml-org/ggml, docs/gguf.md ----

GGUF_VERSION, ALIGNMENT = 3, 32
GGML_F32, GGML_F16, GGML_Q8_0, GGML_BF16 = 0, 1, 8, 30
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
Q8_BLOCK = 32  # values that share an f16 scale


def ggml_type(t, form):
    if form == "f32" or t.always_f32:
        return GGML_F32
    if form == "bf16":
        return GGML_BF16
    return GGML_Q8_0 if form == "q8_0" and t.gguf_shape[-1] % Q8_BLOCK == 0 else GGML_F16


def ggml_bytes(kind, count):
    if kind == GGML_Q8_0:
        return count // Q8_BLOCK * (2 + Q8_BLOCK)
    return (4 if kind == GGML_F32 else 2) * count


def ggml_encode(kind, values):
    values = np.ascontiguousarray(values, dtype=np.float32)
    if kind == GGML_F32:
        return values.tobytes()
    if kind == GGML_F16:
        return values.astype(np.float16).tobytes()
    if kind == GGML_BF16:  # to the nearest, halves to even
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).tobytes()
    blocks = values.reshape(-1, Q8_BLOCK)
    scale = np.abs(blocks).max(1) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    scaled = blocks * inverse[:, None]
    out = np.empty((len(blocks), 2 + Q8_BLOCK), np.uint8)
    out[:, :2] = scale.astype(np.float16).reshape(-1, 1).view(np.uint8)
    # Rounds halves away from zero.
    out[:, 2:] = (np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5))).astype(np.int8).view(np.uint8)
    return out.tobytes()


def byte_level_vocabulary(size):
    """Id 0 ends a text, ids 1 to 256 are the bytes, 257 is the only merge, the rest never comes out of the tokenizer."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = {b: chr(b) for b in printable}
    for i, b in enumerate(b for b in range(256) if b not in names):
        names[b] = chr(256 + i)
    words = ["<|endoftext|>", *(names[b] for b in range(256)), "zq", *(f"f{i:05d}" for i in range(258, size))]
    control, ordinary = 3, 1
    return words, [control] + [ordinary] * (size - 1)


def gguf_string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_value(value):
    """Type and value: bool, int as u32, float as f32, str, list of str, list of int as i32."""
    u32, i32, f32, boolean, string, array = 4, 5, 6, 7, 8, 9
    if isinstance(value, bool):
        return struct.pack("<I?", boolean, value)
    if isinstance(value, int):
        return struct.pack("<II", u32, value)
    if isinstance(value, float):
        return struct.pack("<If", f32, value)
    if isinstance(value, str):
        return struct.pack("<I", string) + gguf_string(value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", array, string, len(value)) + b"".join(map(gguf_string, value))
    return struct.pack("<IIQ", array, i32, len(value)) + np.array(value, np.int32).tobytes()


def gguf_metadata(c, form, name):
    words, kinds = byte_level_vocabulary(c["vocab"])
    inner = 2 * c["d_model"]
    arch = "mamba" if c["family"] == 1 else "mamba2"
    hyper = {
        "context_length": 1 << 20, "embedding_length": c["d_model"], "feed_forward_length": 0, "attention.head_count": 0,
        "block_count": c["n_layer"], "ssm.conv_kernel": D_CONV, "ssm.inner_size": inner, "ssm.state_size": c["d_state"],
        "ssm.time_step_rank": c["dt_rank"] if c["family"] == 1 else inner // c["headdim"],
        "attention.layer_norm_rms_epsilon": 1e-5,
        **({"ssm.dt_b_c_rms": False} if c["family"] == 1 else {"ssm.group_count": c["n_groups"]}),
    }
    return {
        "general.architecture": arch, "general.name": name, "general.file_type": FILE_TYPES[form],
        "general.quantization_version": 2, **{f"{arch}.{key}": value for key, value in hyper.items()},
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.merges": ["z q"], "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.add_bos_token": False,
    }


def write_gguf(c, form, path, name):
    metadata = gguf_metadata(c, form, name)
    with open(path, "wb") as out:
        out.write(b"GGUF" + struct.pack("<IQQ", GGUF_VERSION, sum(1 for _ in tensors(c)), len(metadata)))
        for key, value in metadata.items():
            out.write(gguf_string(key) + gguf_value(value))
        offset = 0
        for t in tensors(c):
            kind, dims = ggml_type(t, form), t.gguf_shape[::-1]
            out.write(gguf_string(t.gguf) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset))
            size = ggml_bytes(kind, int(np.prod(dims)))
            offset += size + -size % ALIGNMENT
        out.write(b"\0" * (-out.tell() % ALIGNMENT))
        for t in tensors(c):
            kind = ggml_type(t, form)
            data = ggml_encode(kind, t.to_gguf(t.values()).reshape(t.gguf_shape))
            assert len(data) == ggml_bytes(kind, int(np.prod(t.gguf_shape))), t.gguf
            out.write(data + b"\0" * (-len(data) % ALIGNMENT))


def main():
    if len(sys.argv) != 4 or sys.argv[1] not in SHAPES or sys.argv[2] not in ("hf", "hf16", *FILE_TYPES):
        sys.exit(__doc__.strip())
    shape, form, path = sys.argv[1:]
    if form.startswith("hf"):
        write_hf(SHAPES[shape], path, half=form == "hf16")
    else:
        write_gguf(SHAPES[shape], form, path, shape)


if __name__ == "__main__":
    main()

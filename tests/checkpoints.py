"""Checkpoints that take no time to write: seeded tiny llamas with a tokenizer, as save_pretrained leaves them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, MIDDLE, HEADS, VOCABULARY = 64, 128, 4, 320
INDEX = "model.safetensors.index.json"
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def config(layers: int = 2, **changes: Any) -> dict[str, Any]:
    """A llama's config as transformers 5 writes it: rope settings nested, a theta that is not the default."""
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": HIDDEN,
        "intermediate_size": MIDDLE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 2,
        "head_dim": HIDDEN // HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return settings | changes


def weights(layers: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """The tensors of such a llama, float32."""
    random = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (HIDDEN,)
        for name, rows in (("q", HIDDEN), ("k", HIDDEN // 2), ("v", HIDDEN // 2), ("o", HIDDEN)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (rows, HIDDEN)
        shapes[prefix + "post_attention_layernorm.weight"] = (HIDDEN,)
        shapes[prefix + "mlp.gate_proj.weight"] = (MIDDLE, HIDDEN)
        shapes[prefix + "mlp.up_proj.weight"] = (MIDDLE, HIDDEN)
        shapes[prefix + "mlp.down_proj.weight"] = (HIDDEN, MIDDLE)
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    return {
        name: (1 + 0.1 * random.standard_normal(shape, np.float32))
        if len(shape) == 1
        else 0.2 * random.standard_normal(shape, np.float32)
        for name, shape in shapes.items()
    }


def encode(array: np.ndarray, dtype: str) -> np.ndarray:
    """``array`` in a safetensors dtype; bfloat16 as its bits, cut off."""
    if dtype == "BF16":
        return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return np.ascontiguousarray(array, NUMPY[dtype])


def save(path: Path, arrays: Mapping[str, np.ndarray], dtype: str = "BF16") -> None:
    """A safetensors file, written by hand so that tests may also write wrong ones."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts, offset = [], 0
    for name, array in arrays.items():
        data = encode(array, dtype)
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + data.nbytes]}
        parts.append(data.tobytes())
        offset += data.nbytes
    write_raw(path, header, b"".join(parts))


def write_raw(path: Path, header: Mapping[str, Any] | bytes, data: bytes) -> None:
    """Any header before any data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def read_raw(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def write_tokenizer(folder: Path, tokens: int = VOCABULARY) -> None:
    """A byte-level BPE tokenizer with ids up to ``tokens`` - 1."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "</s>"]
    fill = [f"<extra_{number}>" for number in range(tokens - len(alphabet) - len(special))]
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet, *fill])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')


def write_side_files(folder: Path, layers: int = 2, **changes: Any) -> None:
    """Everything but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(layers, **changes), indent=2))
    (folder / "generation_config.json").write_text('{"eos_token_id":  1}\n')
    write_tokenizer(folder)


def edit_json(path: Path, **changes: Any) -> None:
    """Give a JSON file's object other fields."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def split(arrays: Mapping[str, Any], shards: int) -> dict[str, dict[str, Any]]:
    """Tensors by shard, in order, about as many in each."""
    names, files = [*arrays], {}
    for number in range(shards):
        held = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        files[f"{number + 1:05d}-of-{shards:05d}"] = {name: arrays[name] for name in held}
    return files


def write_llama(folder: Path, layers: int = 2, shards: int = 3, dtype: str = "BF16", seed: int = 0) -> Path:
    """A whole checkpoint in safetensors."""
    write_side_files(folder, layers)
    arrays = weights(layers, seed)
    if shards == 1:
        save(folder / "model.safetensors", arrays, dtype)
        return folder
    files = {f"model-{number}.safetensors": held for number, held in split(arrays, shards).items()}
    for file, held in files.items():
        save(folder / file, held, dtype)
    weight_map = {name: file for file, held in files.items() for name in held}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def write_torch_llama(folder: Path, layers: int = 2, shards: int = 1, seed: int = 0) -> Path:
    """The same tensors in pytorch_model*.bin."""
    import torch

    write_side_files(folder, layers)
    arrays = {
        name: torch.from_numpy(encode(array, "BF16").view(np.int16)).view(torch.bfloat16)
        for name, array in weights(layers, seed).items()
    }
    if shards == 1:
        torch.save(arrays, folder / "pytorch_model.bin")
        return folder
    files = {f"pytorch_model-{number}.bin": held for number, held in split(arrays, shards).items()}
    for file, held in files.items():
        torch.save(held, folder / file)
    weight_map = {name: file for file, held in files.items() for name in held}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def hash_tree(folder: Path) -> dict[str, str]:
    """Every file below ``folder`` with its hash, every link with its target."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(parent, name)
            key = str(path.relative_to(folder))
            if path.is_symlink():
                found[key] = f"-> {os.readlink(path)}"
            elif path.is_file():
                found[key] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                found[key] = "folder"
    return found


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("out") and path.name != "out")


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """A number in a file must not take the machine's memory: 4 GB more than now, then MemoryError."""
    if not sys.platform.startswith("linux"):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (4 << 30), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

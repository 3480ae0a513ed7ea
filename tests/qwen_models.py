"""A tiny Qwen-Chat of 2023 as its repository has it: a list of ranks for a tokenizer, and code that must not run."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints import INDEX, save

VOCABULARY, HIDDEN, HEADS, MIDDLE, LAYERS, TRAINED = 640, 64, 4, 256, 2, 64
CODE = ("configuration_qwen.py", "modeling_qwen.py", "tokenization_qwen.py", "qwen_generation_utils.py")
# Enough of it for merges of merges, in two scripts.
_TEXT = (
    "the theory of the others: there they're, and then we've 12 of them. " * 3 + "你好，世界你好 naïve café "
).encode() * 4


def ranks(count: int = 400) -> list[bytes]:
    """Byte pair encoding of a text: the bytes, then tokens in the order in which they were joined."""
    tokens = [bytes([value]) for value in range(256)]
    words = [[bytes([value]) for value in word + b" "] for word in _TEXT.split()]
    while len(tokens) < count:
        pairs = Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
        # Where nothing is left to join, any pair is a token.
        best = max(pairs, key=lambda pair: (pairs[pair], pair)) if pairs else (tokens[-1], b"!")
        joined = best[0] + best[1]
        tokens += [joined] if joined not in tokens else []
        words = [_joined(word, joined) for word in words]
    return tokens


def _joined(word: list[bytes], token: bytes) -> list[bytes]:
    made: list[bytes] = []
    for part in word:
        if made and made[-1] + part == token:
            made[-1] = token
        else:
            made.append(part)
    return made


def ranks_file(tokens: list[bytes]) -> bytes:
    """The file of them."""
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def config(**changes: Any) -> dict[str, Any]:
    """Its config.json."""
    settings = {
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig", "AutoModelForCausalLM": "modeling_qwen.QWenModel"},
        "hidden_size": HIDDEN,
        "intermediate_size": MIDDLE,
        "kv_channels": HIDDEN // HEADS,
        "layer_norm_epsilon": 1e-6,
        "max_position_embeddings": 256,
        "model_type": "qwen",
        "no_bias": True,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": TRAINED,
        "tie_word_embeddings": False,
        "tokenizer_class": "QWenTokenizer",
        "use_dynamic_ntk": True,
        "use_flash_attn": "auto",
        "use_logn_attn": True,
        "vocab_size": VOCABULARY,
    }
    return settings | changes


def weights() -> dict[str, np.ndarray]:
    """Its tensors, float32."""
    random = np.random.default_rng(0)
    shapes = {"transformer.wte.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        block = f"transformer.h.{layer}."
        shapes |= {
            f"{block}attn.c_attn.weight": (3 * HIDDEN, HIDDEN),
            f"{block}attn.c_proj.weight": (HIDDEN, HIDDEN),
            f"{block}mlp.w1.weight": (MIDDLE // 2, HIDDEN),
            f"{block}mlp.w2.weight": (MIDDLE // 2, HIDDEN),
            f"{block}mlp.c_proj.weight": (HIDDEN, MIDDLE // 2),
        }
    made = {name: random.normal(size=shape) / shape[1] ** 0.5 for name, shape in shapes.items()}
    for layer in range(LAYERS):
        made[f"transformer.h.{layer}.attn.c_attn.bias"] = random.normal(size=3 * HIDDEN) / 4
        made |= {f"transformer.h.{layer}.ln_{i}.weight": random.normal(1, 0.1, HIDDEN) for i in (1, 2)}
    made["transformer.ln_f.weight"] = random.normal(1, 0.1, HIDDEN)
    return {name: array.astype(np.float32) for name, array in made.items()}


def write_qwen(folder: Path, chat_format: str = "chatml", **changes: Any) -> Path:
    """The checkpoint; its code leaves a file ``ran`` beside the folder."""
    folder.mkdir()
    arrays = weights()
    names = list(arrays)
    files = {f"model-0000{part + 1}-of-00002.safetensors": names[part::2] for part in (0, 1)}
    for file, held in files.items():
        save(folder / file, {name: arrays[name] for name in held})
    index = {"metadata": {"total_size": 0}, "weight_map": {name: file for file in files for name in files[file]}}
    generation = {"chat_format": chat_format, "eos_token_id": 400, "pad_token_id": 400, "do_sample": True}
    settings = {
        "model_max_length": 8192,
        "tokenizer_class": "QWenTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
    }
    for file, content in (
        (INDEX, index),
        ("config.json", config(**changes)),
        ("generation_config.json", generation),
        ("tokenizer_config.json", settings),
    ):
        (folder / file).write_text(json.dumps(content))
    (folder / "qwen.tiktoken").write_bytes(ranks_file(ranks()))
    for file in CODE:
        (folder / file).write_text(f"open({str(folder.parent / 'ran')!r}, 'w')\n")
    return folder

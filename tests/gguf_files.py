"""Little GGUF files, written by the gguf package of llama.cpp as its converters write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from checkpoints import VOCABULARY

K_TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
_HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def packed(array: np.ndarray, kind: str, seed: int = 0) -> np.ndarray:
    """Blocks of a type: quantized by the gguf package where it can, else random ones of about the right size."""
    number = gguf.GGMLQuantizationType[kind]
    if kind in K_TYPES:
        elements, nbytes = gguf.GGML_QUANT_SIZES[number]
        random = np.random.default_rng(seed)
        blocks = random.integers(0, 256, (array.size // elements, nbytes), dtype=np.uint8)
        for place in _HALVES[kind]:
            scale = (1e-4 * random.random((len(blocks), 1)) + 1e-4).astype(np.float16)
            blocks[:, place : place + 2] = scale.view(np.uint8)
        return blocks.reshape(*array.shape[:-1], -1)
    return gguf.quants.quantize(array, number)


def turned(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order of llama.cpp's rope, as its converter puts them (``LlamaModel.permute``)."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def gguf_name(name: str, architecture: str = "llama") -> str:
    """What llama.cpp calls a tensor of transformers, by the tables of its converters."""
    number = next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == architecture)
    stem, _, end = name.rpartition(".")
    found = gguf.get_tensor_name_map(number, 4).get_name(stem)
    assert found is not None, name
    return f"{found}.{end}"


def as_converted(
    tensors: Mapping[str, np.ndarray], architecture: str, config: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Tensors of transformers as llama.cpp's converter writes them: other names, rows turned, experts stacked."""
    found: dict[str, np.ndarray] = {}
    experts: dict[str, list[np.ndarray]] = {}
    for name, array in tensors.items():
        if ".experts." in name:
            before, _, after = name.partition(".experts.")
            experts.setdefault(f"{before}.experts.{after.partition('.')[2]}", []).append(array)
            continue
        made = gguf_name(name, architecture)
        if architecture == "llama" and ".attn_q." in made:
            array = turned(array, config["num_attention_heads"])
        if architecture == "llama" and ".attn_k." in made:
            array = turned(array, config["num_key_value_heads"])
        if architecture.startswith("gemma") and made.endswith("norm.weight"):
            array = array + np.float32(1)
        found[made] = array
    return found | {gguf_name(name, architecture): np.stack(parts) for name, parts in experts.items()}


def write_gguf(
    path: Path,
    architecture: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    kind: Callable[[str], str] = lambda name: "F32",
    more: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    tokenizer: bool = True,
    **options: Any,
) -> Path:
    """A file of a model.

    Args:
        path: Where.
        architecture: ``general.architecture``.
        config: Fields of transformers' config.
        tensors: By llama.cpp's names.
        kind: Name to type.
        more: Adds other metadata.
        tokenizer: Whether to add one of bytes.
        options: Of the writer: how it splits the file.
    """
    writer = gguf.GGUFWriter(path, architecture, **options)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    if tokenizer:
        add_tokenizer(writer)
    more(writer)
    for number, (name, array) in enumerate(tensors.items()):
        form = kind(name)
        if form in ("F32", "F16"):
            writer.add_tensor(name, array.astype(np.float32 if form == "F32" else np.float16))
        else:
            writer.add_tensor(name, packed(array, form, number), raw_dtype=gguf.GGMLQuantizationType[form])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: gguf.GGUFWriter, tokens: int = VOCABULARY) -> None:
    """The alphabet of bytes, two tokens that begin and end a text, and fillers."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    listed = ["<s>", "</s>", *alphabet, "th"]
    fill = [f"extra{number}" for number in range(tokens - len(listed))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([*listed, *fill])
    writer.add_token_types([3, 3, *[1] * (tokens - 2)])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}")

"""Names for the numbers in a port's code: what the model's config and the attributes of its modules call them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from mlxport.graph.capture.captured import Captured

__all__ = ["Field", "Namer", "exact", "is_number"]


@dataclass
class Field:
    """A size or a setting that the port's ``ModelArgs`` names, or a word for each layer."""

    name: str
    value: int | float | list[str]


class Namer:
    """Names for numbers, from the model's config and the attributes of its modules."""

    def __init__(self, captured: Captured) -> None:
        self.fields: dict[str, Field] = {}
        self.values: dict[Any, list[str]] = defaultdict(list)
        known: dict[str, set[Any]] = defaultdict(set)
        config: Any = getattr(captured.modules[""], "config", None)
        given = config.to_dict() if hasattr(config, "to_dict") else {}
        for name, value in given.items():
            if is_number(value):
                known[name].add(value)
        for module in captured.modules.values():
            if type(module).__module__.startswith("torch."):
                continue
            for name, value in vars(module).items():
                if not name.startswith("_") and name not in ("training",) and is_number(value) and name not in given:
                    known[name].add(value)
        for name, values in known.items():
            if len(values) == 1 and name.isidentifier():
                self.values[exact(next(iter(values)))].append(name)

    def find(self, value: Any, tag: str) -> str | None:
        """The name of a number in the place that ``tag`` says, if there is one that fits."""
        if isinstance(value, int) and value <= 2:
            return None
        fitting = [name for name in self.values.get(exact(value), ()) if _fits(name, tag)]
        if not fitting:
            return None
        fitting.sort(key=lambda name: _rank(name, tag))
        self.fields.setdefault(fitting[0], Field(fitting[0], value))
        return fitting[0]


def exact(value: Any) -> tuple[str, Any]:
    """A number with its type: 1, 1.0 and True are three."""
    return type(value).__name__, value


def is_number(value: Any) -> bool:
    """Whether the value is a number; a flag is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


_WORDS: dict[str, tuple[str, ...]] = {
    "num_embeddings": ("vocab", "position", "type", "num_embeddings", "n_ctx", "codebook", "num_embed", "max_"),
    "eps": ("eps",),
    "range": ("layer", "depth", "block", "num_stages"),
    "num_groups": ("group",),
}
# What the sizes of layers and weights may be called.
_SIZES = ("size", "dim", "d_model", "d_ff", "embd", "width", "channels", "units", "features", "inner", "planes", "ffn")
_SIZE_TAGS = frozenset(
    "input_dims output_dims dims in_channels out_channels input_size hidden_size num_features weight".split()
)
_NEVER = ("token_id", "_id", "seed", "dropout", "drop", "prob", "initializer", "version", "penalty", "num_return",
          "top_k", "topk", "length", "num_beams", "temperature", "batch", "window", "image", "patch", "kernel", "chunk",
          "max_position", "num_", "tile", "crop", "pad")  # fmt: skip


def _fits(name: str, tag: str) -> bool:
    low = name.lower()
    words = _WORDS.get(tag)
    if words is not None:
        return any(word in low for word in words) and "_id" not in low
    if low == "num_channels":
        return tag in ("in_channels", "out_channels")
    if tag not in _SIZE_TAGS or any(word in low for word in _NEVER):
        return False
    if "vocab" in low:
        return tag == "output_dims"
    return any(word in low for word in (*_SIZES, "rank"))


def _rank(name: str, tag: str) -> tuple[int, int]:
    order = {
        "num_embeddings": ("vocab", "position", "type"),
        "dims": ("hidden_size", "d_model", "dim"),
        "input_dims": ("hidden_size", "d_model"),
        "output_dims": ("hidden_size", "d_model"),
    }
    for index, word in enumerate(order.get(tag, ())):
        if word in name:
            return index, len(name)
    return 9, len(name)

"""What a ``config.json`` says of a language model: the one reader of configs, whatever names and places they use.

A config is what somebody wrote: sizes have several names, composite models keep those of their language model in a part
of the config, and any value may be of any type. Here each question has one answer: the value, or None where the config
does not say it in a form that can be believed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mlxport.config_values import check_values
from mlxport.errors import ConfigError

__all__ = ["ModelConfig"]

# Where composite configs keep the part that describes the language model, the surest first. `decoder`, `generator` and
# `text_encoder` are those of transformers' get_text_config; other models have parts of these names that know no words.
_TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
_TEXT_PARTS_WITH_WORDS = ("decoder", "generator", "text_encoder")
_DEEPEST = 3  # thinker_config holds a text_config

# What is asked for -> its names in configs, in the order in which they count.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "context_length": (
        *("max_position_embeddings", "max_encoder_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
        *("n_ctx", "max_sequence_length"),
    ),
    "vocabulary": ("vocab_size",),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "sliding_window": ("sliding_window",),
}


@dataclass(frozen=True)
class ModelConfig:
    """A parsed config and what it says of the language model.

    Sizes are those of the text part; what that leaves out counts as the parts around it have it. What belongs to the
    whole model (dtype, ids of special tokens, quantization) is looked for from the outside in.

    Attributes:
        values: The whole config, as parsed. It is not copied: make a new ModelConfig of what has been changed.
    """

    values: Mapping[str, Any]

    @cached_property
    def path(self) -> tuple[str, ...]:
        """The keys that lead to the text part; none where the config describes a language model itself."""
        return tuple(key for key, _ in self._nested)

    @cached_property
    def text(self) -> Mapping[str, Any]:
        """The part that describes the language model: the whole config, or what ``path`` leads to."""
        return self.parts[-1]

    @property
    def has_text_part(self) -> bool:
        """Whether a part is named as a language model of its own: a ``decoder`` may be the half of something else."""
        return bool(self.path) and all(key in _TEXT_PARTS for key in self.path)

    @cached_property
    def parts(self) -> tuple[Mapping[str, Any], ...]:
        """The config and the parts of it on the way to the text part, from the outside in."""
        return self.values, *(part for _, part in self._nested)

    @cached_property
    def model_type(self) -> str | None:
        """What the whole model is called."""
        return _text(self.values.get("model_type"))

    @cached_property
    def architectures(self) -> tuple[str, ...]:
        """Names of the classes that the weights are of."""
        given = self.values.get("architectures")
        return tuple(name for name in given if isinstance(name, str)) if isinstance(given, (list, tuple)) else ()

    @cached_property
    def context_length(self) -> int | None:
        """The longest sequence that the model was made for."""
        return self.size("context_length")

    @cached_property
    def any_length(self) -> bool:
        """Whether positions are distances in buckets (T5), and none is a row of a table: longer sequences can be read.

        MPNet has such a table beside its distances. What else names a length of such a model says what it was made for.
        """
        return "max_position_embeddings" not in self.text and bool(
            _count(self.text.get("relative_attention_num_buckets"))
        )

    @cached_property
    def vocabulary(self) -> int | None:
        """Number of token ids; the embedding may have more rows (``embedding_rows``)."""
        return self.size("vocabulary")

    @cached_property
    def hidden_size(self) -> int | None:
        """Width of the states between the layers."""
        return self.size("hidden_size")

    @cached_property
    def layers(self) -> int | None:
        """Number of layers."""
        return self.size("layers")

    @cached_property
    def heads(self) -> int | None:
        """Number of attention heads."""
        return self.size("heads")

    @cached_property
    def sliding_window(self) -> int | None:
        """Tokens that attention looks back on where it does not on all."""
        return self.size("sliding_window")

    @cached_property
    def bos(self) -> int | None:
        """The id that texts begin with."""
        return next((i for part in self.parts for i in _ids(part.get("bos_token_id"))), None)

    @cached_property
    def eos(self) -> tuple[int, ...]:
        """The ids that end a text. The whole model's list may be longer than its text part's (gemma 3)."""
        return next((ids for part in self.parts if (ids := _ids(part.get("eos_token_id")))), ())

    @cached_property
    def dtype(self) -> str | None:
        """Name of the dtype that the config states (``bfloat16``, …)."""
        given = (_text(part.get(key)) for part in self.parts for key in ("dtype", "torch_dtype"))
        return next((name.removeprefix("torch.") for name in given if name is not None), None)

    @cached_property
    def tied(self) -> bool | None:
        """Whether the output shares the embeddings."""
        given = (part.get("tie_word_embeddings") for part in reversed(self.parts))
        return next((value for value in given if isinstance(value, bool)), None)

    @cached_property
    def mlx_quantization(self) -> Mapping[str, Any]:
        """The block that mlx-lm reads, empty where the weights are not quantized for MLX."""
        block = self.values.get("quantization")
        return block if isinstance(block, Mapping) else {}

    @cached_property
    def foreign_quantization(self) -> Mapping[str, Any]:
        """The block of another quantizer (AWQ, GPTQ, fp8, …), empty where there is none."""
        given = (part.get("quantization_config") for part in self.parts)
        return next((block for block in given if isinstance(block, Mapping) and block), {})

    def first(self, name: str) -> Any:
        """The value of a field, whatever it is, of the outermost part that has one; None where none has."""
        return next((value for part in self.parts if (value := part.get(name)) is not None), None)

    def count(self, *names: str) -> int | None:
        """The number of one or more that the innermost part gives under one of ``names``, the first name first."""
        values = (_count(part.get(name)) for part in reversed(self.parts) for name in names)
        return next((value for value in values if value is not None), None)

    def fields(self, what: str) -> dict[str, int]:
        """Every field of the text part that gives a size by one of its names, the one that counts first."""
        return {name: size for name in _NAMES[what] if (size := _count(self.text.get(name))) is not None}

    def size(self, what: str) -> int | None:
        """One of the sizes above by its name (``context_length``, ``vocabulary``, …)."""
        return self.count(*_NAMES[what])

    def needed(self, what: str) -> int:
        """A size that there is no going on without.

        Raises:
            ConfigError: The config does not say; names the fields that would, and what they hold.
        """
        if (found := self.size(what)) is not None:
            return found
        where = ".".join(self.path) or "its root"
        odd = [f"{name} is {str(part[name])[:80]!r}" for part in self.parts for name in _NAMES[what] if name in part]
        said = f"; {', '.join(odd)}" if odd else ""
        raise ConfigError(
            f"config.json gives no {what.replace('_', ' ')} (looked for {', '.join(_NAMES[what])} in {where}{said})",
            hint="get config.json again from where the weights are from",
        )

    def check(self, path: object) -> None:
        """Refuse values that no model can have: what is built from them fails far from here, or fills the memory.

        Args:
            path: What to call the config in the error.

        Raises:
            ConfigError: Names the field, what it holds and what was expected.
        """
        check_values(self.values, self.parts, path)

    @cached_property
    def _nested(self) -> tuple[tuple[str, Mapping[str, Any]], ...]:
        """Key and content of each part below the root."""
        found: list[tuple[str, Mapping[str, Any]]] = []
        part = self.values
        while len(found) < _DEEPEST and (inner := next(_text_parts(part), None)) is not None:
            found.append(inner)
            part = inner[1]
        return tuple(found)


def _text_parts(part: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What in a part of a config may describe the language model, the surest first."""
    for key in _TEXT_PARTS:
        if isinstance(part.get(key), Mapping):
            yield key, part[key]
    for key in _TEXT_PARTS_WITH_WORDS:
        if isinstance(part.get(key), Mapping) and "vocab_size" in part[key]:
            yield key, part[key]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _ids(value: Any) -> tuple[int, ...]:
    """Token ids, given as one or as a list; what cannot be one is left out."""
    listed = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(item for item in listed if type(item) is int and item >= 0)

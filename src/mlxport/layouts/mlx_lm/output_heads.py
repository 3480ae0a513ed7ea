"""Output layers that a checkpoint stores though its config ties them to the embeddings.

transformers ties the two where they are equal, and computes with the stored output layer where they differ. mlx-lm goes
by the config alone: most of its architectures drop a stored output layer, some have no place for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from mlxport.errors import ConfigError
from mlxport.layouts.mlx_lm.weight_repairs import ALIASES
from mlxport.source.row_reader import same_bytes
from mlxport.types import TensorRef

_HEADS: Final = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS: Final = (
    "embed_tokens.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "wte.weight",
    "backbone.embeddings.weight",
)


def is_head(name: str) -> bool:
    """Say whether `name` is that of the output layer, in a checkpoint or in mlx-lm's model."""
    # not the layer of a draft model, which is named after it
    outer = ("", "model.", "language_model.", "model.language_model.")
    return any(name == prefix + head for prefix in outer for head in _HEADS)


def refuse_other_heads(
    tensors: Mapping[str, TensorRef], unused: Iterable[str], config: Mapping[str, object], source: str
) -> None:
    """Refuse a checkpoint with an output layer that is not its embeddings, though the config ties the two.

    Args:
        tensors: The checkpoint.
        unused: The names of the tensors that mlx-lm drops.
        config: Its ``model_type`` says what the embeddings are called.
        source: What to call the checkpoint.

    Raises:
        ConfigError: mlx-lm drops an output layer that transformers computes with.
    """
    embedding = _embedding(tensors, str(config.get("model_type")))
    for name in filter(is_head, unused):
        if embedding is not None and not same_bytes(tensors[name], embedding):
            raise ConfigError(
                f"{source}/config.json: tie_word_embeddings is true, but {name} is not {embedding.name}: "
                "transformers computes with the stored one, mlx-lm with the embeddings",
                hint=f"set tie_word_embeddings to false if {name} counts, or remove {name} from the weights",
            )


def _embedding(tensors: Mapping[str, TensorRef], model_type: str) -> TensorRef | None:
    """Return the embeddings of the text model: the name that ties them, or the shortest that ends as one."""
    if (alias := ALIASES.get(model_type)) is not None and alias.source in tensors:
        return tensors[alias.source]
    found = [name for end in _EMBEDDINGS for name in tensors if f".{name}".endswith(f".{end}") and "vision" not in name]
    return tensors[min(found, key=len)] if found else None

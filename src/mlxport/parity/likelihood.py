"""Perplexity of a text under the original in torch and under the output in MLX."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import exp
from pathlib import Path
from typing import Any

import numpy as np

from mlxport.errors import TokenizerError
from mlxport.model.tokens import text_ids
from mlxport.model_config import ModelConfig
from mlxport.types import Checkpoint

__all__ = ["Perplexity", "perplexity"]

Array = np.ndarray[Any, Any]
_WINDOW = 512


@dataclass(frozen=True)
class Perplexity:
    """Mean negative log-likelihood of the tokens of a text.

    Attributes:
        nll: Nats per token.
        tokens: Tokens that were predicted.
        windows: Pieces that the text was cut into; each starts without context.
    """

    nll: float
    tokens: int
    windows: int

    @property
    def value(self) -> float:
        """The perplexity."""
        return exp(min(self.nll, 700.0))

    def to_json(self) -> dict[str, float | int]:
        """Plain values only."""
        return {**asdict(self), "perplexity": self.value}


def _windows(ids: list[int], window: int) -> Iterator[Array]:
    for start in range(0, len(ids), window):
        piece = np.asarray(ids[start : start + window], dtype=np.int64)
        if len(piece) > 1:
            yield piece


def _nll(logits: Array, targets: Array) -> float:
    """Sum of the negative log-likelihoods, in blocks: a vocabulary of 128,256 in float64 is a megabyte a row."""
    total = 0.0
    for start in range(0, len(targets), 64):
        rows = logits[start : start + 64].astype(np.float64)
        wanted = np.take_along_axis(rows, targets[start : start + 64, None], -1)[:, 0]
        peak = rows.max(-1)
        total += float((peak + np.log(np.exp(rows - peak[:, None]).sum(-1)) - wanted).sum())
    return total


def _runner(model: Path | Checkpoint, trust_remote_code: bool) -> tuple[Path, int, Callable[[Array], Array]]:
    """Tokenizer folder, longest input, and ids -> logits."""
    if isinstance(model, Checkpoint):
        from mlxport.parity import reference as ref

        torch_model = ref.load_reference(model)
        theirs = ModelConfig(ref.text_config(torch_model.config).to_dict())
        limit = model.model_config.context_length or theirs.context_length
        return model.root, limit or _WINDOW, lambda ids: ref.logits(torch_model, ids)
    from mlxport.model import loaded as out

    mlx_model = out.load_output(model, trust_remote_code=trust_remote_code)
    limit = ModelConfig(json.loads((Path(model) / "config.json").read_text("utf-8"))).context_length
    return Path(model), limit or _WINDOW, lambda ids: out.logits(mlx_model, ids)


def perplexity(
    model: Path | Checkpoint,
    text: str,
    *,
    max_tokens: int = 4096,
    window: int = _WINDOW,
    trust_remote_code: bool = False,
) -> Perplexity:
    """Perplexity of ``text`` under a model, by its own tokenizer.

    Args:
        model: A folder that mlx-lm loads, run in its stored precision; or an original, run by torch in float32.
        text: What is predicted.
        max_tokens: The text is cut after so many tokens.
        window: Tokens of a piece, capped by the model's longest input; pieces do not overlap.
        trust_remote_code: Whether code of the checkpoint may run.

    Raises:
        TokenizerError: The folder has no tokenizer that loads, or the text is shorter than two tokens.
    """
    folder, limit, logits = _runner(model, trust_remote_code)
    ids = text_ids(folder, text, trust_remote_code=trust_remote_code)
    if ids is None or len(ids) < 2:
        raise TokenizerError(f"{folder} has no tokenizer that makes tokens of the text", hint="add its tokenizer files")
    total, tokens, count = 0.0, 0, 0
    for piece in _windows(ids[:max_tokens], min(window, limit)):
        total += _nll(logits(piece)[:-1], piece[1:])
        tokens, count = tokens + len(piece) - 1, count + 1
    return Perplexity(total / tokens, tokens, count)

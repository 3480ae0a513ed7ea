"""From a text to the token ids that a model reads, and the tokens that its sequences begin with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxport.errors import SourceError, TokenizerError
from mlxport.model.texts import PROBE_TEXT
from mlxport.model_config import ModelConfig
from mlxport.source import tokenizer_loading

__all__ = ["any_token", "first_tokens", "load_tokenizer", "probe_ids", "text_ids", "token_ids", "within"]

Refusal = Callable[[BaseException], TokenizerError]


def load_tokenizer(folder: Path, refusal: Refusal, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model's folder.

    Args:
        folder: Where it lies.
        refusal: Makes the error that is raised where there is none that loads.
        trust_remote_code: Whether it may run code of the folder.
    """
    try:
        return tokenizer_loading.load_tokenizer(folder, trust_remote_code=trust_remote_code)
    except SourceError as error:
        raise refusal(error) from error


def token_ids(folder: Path, text: str, refusal: Refusal, *, trust_remote_code: bool = False) -> list[int]:
    """Token ids of a text by the folder's own tokenizer; arguments as of ``load_tokenizer``."""
    tokenizer = load_tokenizer(folder, refusal, trust_remote_code=trust_remote_code)
    with tokenizer_loading.refusing(refusal):
        return [int(token) for token in tokenizer(text, verbose=False)["input_ids"]]


def text_ids(folder: Path, text: str, *, trust_remote_code: bool = False) -> list[int] | None:
    """The same, None where the folder has no tokenizer that loads."""
    try:
        return token_ids(folder, text, lambda error: TokenizerError(str(error)), trust_remote_code=trust_remote_code)
    except TokenizerError:
        return None


def within(ids: Iterable[int], vocabulary: int | None) -> tuple[list[int], tuple[str, ...]]:
    """The ids that have a row in the embedding, and a remark where others were left out; None knows no end of rows."""
    every = list(ids)
    kept = [token for token in every if 0 <= token and (vocabulary is None or token < vocabulary)]
    if len(kept) == len(every):
        return kept, ()
    left = f"{len(every) - len(kept)} of {len(every)}"
    return kept, (f"{left} token ids of the text lie outside the vocabulary: left out",)


def probe_ids(
    folder: Path, vocabulary: int, length: int, *, trust_remote_code: bool = False
) -> tuple[list[np.ndarray[Any, Any]], tuple[str, ...]]:
    """Two sequences of token ids, one of ``length`` and a short one of another shape, and notes on their origin.

    Args:
        folder: Where the tokenizer lies.
        vocabulary: Rows of the embedding; ids beyond it are left out.
        length: Tokens of the long sequence.
        trust_remote_code: Whether a tokenizer may run code of the checkpoint.
    """
    ids = text_ids(folder, PROBE_TEXT, trust_remote_code=trust_remote_code)
    kept, notes = within(ids or (), vocabulary)
    if len(kept) < 8:
        why = "no tokenizer that loads" if ids is None else f"the tokenizer makes {len(kept)} tokens of the text"
        notes = (*notes, f"{why}: the inputs are pseudo-random token ids, not text")
        kept = np.random.default_rng(0).integers(0, vocabulary, max(length, 64)).tolist()
    whole = np.resize(np.asarray(kept, dtype=np.int64), max(length, len(kept)))
    short = max(min(length // 2, 19), 1)
    return [whole[:length], whole[-short:]], notes


def first_tokens(
    config: ModelConfig, vocabulary: int | None, count: int, otherwise: Callable[[], mx.array]
) -> mx.array:
    """What so many sequences begin with, int32 [count].

    Args:
        config: The model's: the token that its texts begin with.
        vocabulary: Number of token ids, None where nothing says.
        count: Number of sequences.
        otherwise: What they begin with where the config names no token of the vocabulary.
    """
    if config.bos is not None and (vocabulary is None or config.bos < vocabulary):
        return mx.full((count,), config.bos, dtype=mx.int32)
    return otherwise().astype(mx.int32)


def any_token(vocabulary: int, count: int, key: mx.array) -> Callable[[], mx.array]:
    """Where nothing says how a text begins, any token may: drawn evenly."""
    return lambda: mx.random.randint(0, vocabulary, (count,), key=key)

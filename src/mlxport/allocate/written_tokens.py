"""The tokens that damage is measured on: what the model itself writes, and a built-in text, so that no data is needed.

What a model writes is what it knows best, and a text is not: bits chosen on one alone can cost more than they save on
the other. Choices are judged on more of both, which no bits were chosen with.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxport.errors import UnsupportedError
from mlxport.model.both_texts import beginnings, copied, first_written, has_encoder
from mlxport.model.lazy_parameters import LazyModel, wide_on_cpu
from mlxport.model.self_written import write_sequences
from mlxport.model.tensors import computed_tensors
from mlxport.model.texts import WRITES_UP_TO, calibration_text
from mlxport.model.tokens import any_token, first_tokens, text_ids, within
from mlxport.transform import Program
from mlxport.types import Checkpoint

__all__ = ["Tokens", "make_tokens"]

# Tokens of a sequence. Errors add up along it: modules that early tokens hardly need matter later.
_LONGEST, _SHORTEST = 256, 64
# What judges is this many times what measures: two choices are closer to each other than two bits of a module.
_JUDGING = 4


@dataclass(frozen=True)
class Tokens:
    """What a model reads.

    Attributes:
        ids: int32 [sequences, length].
        kinds: Sequences of each kind of text, in their order.
        origin: Where they come from, in words that follow "tokens".
    """

    ids: mx.array
    kinds: tuple[int, ...]
    origin: str


def make_tokens(
    checkpoint: Checkpoint, model: nn.Module, program: Program, vocabulary: int, count: int
) -> tuple[Tokens, Tokens]:
    """Sequences to measure on, and others to judge on: half of them written by the model, half of a built-in text.

    Models that are too large to write here, or that cannot, read the text alone; those without a tokenizer write alone,
    and read random tokens where they cannot.

    Args:
        checkpoint: The opened source, for its tokenizer and the first token.
        model: mlx-lm's model; its parameters are placeholders afterwards.
        program: From checkpoint tensors to the model's parameters.
        vocabulary: Number of token ids.
        count: About how many tokens to measure on.
    """
    tensors, key = computed_tensors(program), mx.random.key(0)
    writes = sum(tensor.nbytes for tensor in tensors.values()) <= WRITES_UP_TO
    ids, _ = within(_text(checkpoint), vocabulary)
    share = count // 2 if writes and len(ids) >= 2 * _LONGEST else count
    length = max(2, min(_LONGEST, checkpoint.model_config.context_length or _LONGEST, max(share, _SHORTEST)))
    sequences = max(1, share // length) * (1 + _JUDGING)
    kinds = {}
    if has_encoder(model):
        if len(ids) < 2 * length:
            source = mx.random.randint(0, vocabulary, (sequences, length), key=key)
        else:
            source = _windows(ids, sequences, length)
        return _both_texts(source, LazyModel(model, tensors, wide_on_cpu), first_written(checkpoint), writes, key)
    if writes:
        first = first_tokens(checkpoint.model_config, vocabulary, sequences, any_token(vocabulary, sequences, key))
        with contextlib.suppress(UnsupportedError):  # an architecture that mlx-lm cannot generate with: it still reads
            writer = LazyModel(model, tensors, wide_on_cpu)
            kinds["written by itself"] = write_sequences(writer, first, length, key, "give a text")
    if len(ids) >= 2 * length:
        kinds["of a built-in text"] = _windows(ids, sequences, length)
    if not kinds:
        kinds["random"] = mx.random.randint(0, vocabulary, (sequences, length), key=key)
    return _parts(list(kinds.values()), " and ".join(kinds))


def _both_texts(ids: mx.array, model: LazyModel, start: int, writes: bool, key: mx.array) -> tuple[Tokens, Tokens]:
    """Texts to read, the first halves of ``ids``, and what the model writes of them, or else the same texts."""
    if writes:
        with contextlib.suppress(UnsupportedError):
            wrote = write_sequences(model, beginnings(ids, start), ids.shape[1], key, "give a text")
            return _parts([wrote], "that it reads and writes itself")
    return _parts([copied(ids, start)], "that it reads and copies")


def _text(checkpoint: Checkpoint) -> list[int]:
    """Tokens of the text that calibration reads; none where no tokenizer loads."""
    found = text_ids(checkpoint.root, calibration_text(), trust_remote_code=checkpoint.trust_remote_code)
    return found or []


def _windows(ids: list[int], sequences: int, length: int) -> mx.array:
    """So many windows of a text, at even distances, int32 [sequences, length]."""
    starts = np.linspace(0, len(ids) - length, sequences).astype(int)
    return mx.array(np.stack([np.asarray(ids[start : start + length]) for start in starts]), mx.int32)


def _parts(kinds: list[mx.array], origin: str) -> tuple[Tokens, Tokens]:
    """Of each kind the share that measures and the one that judges, evenly spread over it."""
    measured, judged = [], []
    for ids in kinds:
        every = 1 + _JUDGING
        places = np.arange(ids.shape[0])
        measured.append(ids[mx.array(places[places % every == 0])])
        judged.append(ids[mx.array(places[places % every != 0])])
    return _joined(measured, origin), _joined(judged, origin)


def _joined(kinds: list[mx.array], origin: str) -> Tokens:
    return Tokens(mx.concatenate(kinds).astype(mx.int32), tuple(ids.shape[0] for ids in kinds), origin)

"""How far the output's predictions are from the original's: divergence, agreement, perplexity.

    quality = compare("path/to/original", "path/to/converted")
    quality.kl_mean, quality.kl_p99, quality.top1, quality.perplexity

``compare`` measures one output. To measure several against one original, open that once and place it in memory:

    original = open_original(source)
    for folder in folders:
        output = open_output(folder)
        place(original, output)  # loads what is not placed yet
        quality = compare(original, output)

``Tally`` holds the arithmetic, for logits from anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import exp
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxport.errors import UsageError
from mlxport.model.texts import heldout_text
from mlxport.quality.opened import Opened, open_original, open_output, place
from mlxport.quality.text_windows import token_windows
from mlxport.quality.written_windows import written_windows
from mlxport.types import Checkpoint

__all__ = ["Quality", "Tally", "compare", "compare_each", "default_tokens", "windows_for"]

Array = np.ndarray[Any, Any]
WINDOW = 512
MOST_TOKENS, FEWEST_TOKENS = 4096, 256
# Multiply-adds that are worth waiting for: minutes on one processor core or two, seconds on a GPU.
_FLOPS_CPU, _FLOPS_GPU = 1e12, 2e14
_LOGITS_BYTES = 256 << 20  # of one sequence of one model
_LEVELS = (1.0, 2.0, *(float(level) for level in range(5, 100, 5)), 98.0, 99.0, 99.5, 100.0)
_BLOCK = 1 << 22  # logits that are worked on at a time, in float64


@dataclass(frozen=True)
class Quality:
    """What an output lost, per predicted token of a text.

    Both models computed in float32 with the values that they store, so what differs is what the conversion stored.

    Attributes:
        tokens: Tokens that both models predicted.
        windows: Sequences that the text was cut into; each starts without context.
        kl_mean: Mean Kullback-Leibler divergence of the output from the original, KL(original‖output), in nats.
        kl_median: Its median.
        kl_p99: Its 99th percentile, between two tokens interpolated linearly.
        kl_max: Its largest value.
        kl_error: Standard error of the mean, taking tokens as independent.
        kl_levels: Divergence that a percentage of the tokens stays below: pairs (percentage, nats).
        top1: Share of tokens for which both find the same token most likely.
        perplexity_original: exp of the original's mean negative log-likelihood of the text.
        perplexity: The same of the output.
        original_placed: ``memory``, or ``disk`` where its weights were read as they were used.
        output_placed: The same of the output.
        notes: What a reader must know.
    """

    tokens: int
    windows: int
    kl_mean: float
    kl_median: float
    kl_p99: float
    kl_max: float
    kl_error: float
    top1: float
    perplexity_original: float
    perplexity: float
    kl_levels: tuple[tuple[float, float], ...] = ()
    original_placed: str = ""
    output_placed: str = ""
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return {**asdict(self), "notes": list(self.notes)}

    def summary(self) -> str:
        """One line for a terminal."""
        return (
            f"KL {self.kl_mean:.4g} nats a token (99th percentile {self.kl_p99:.3g}), top-1 {self.top1:.1%}, "
            f"perplexity {self.perplexity:.4g} (original {self.perplexity_original:.4g}), {self.tokens} tokens"
        )


@dataclass
class Tally:
    """Sums over predicted tokens, in float64, a block of positions at a time.

    Attributes:
        kl: Divergence of each token so far, in nats.
    """

    kl: list[Array] = field(default_factory=list)
    _same: int = 0
    _nll: Array = field(default_factory=lambda: np.zeros(2))
    _windows: int = 0

    def add(self, original: Array, output: Array, targets: Array) -> None:
        """Count one sequence.

        Args:
            original: Logits [tokens, vocabulary].
            output: The same of the other model.
            targets: The tokens that follow [tokens], ids.
        """
        step = max(1, _BLOCK // original.shape[-1])
        for start in range(0, len(targets), step):
            block = slice(start, start + step)
            p, q = (_log_softmax(logits[block]) for logits in (original, output))
            self.kl.append(np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0))
            self._same += int((p.argmax(-1) == q.argmax(-1)).sum())
            at = targets[block, None]
            self._nll -= [float(np.take_along_axis(side, at, -1).sum()) for side in (p, q)]
        self._windows += 1

    def result(self) -> Quality:
        """The figures so far, of at least one token."""
        kl = np.concatenate(self.kl)
        original, output = (exp(min(nll / kl.size, 700.0)) for nll in self._nll)
        return Quality(
            tokens=int(kl.size),
            windows=self._windows,
            kl_mean=float(kl.mean()),
            kl_median=float(np.median(kl)),
            kl_p99=float(np.percentile(kl, 99)),
            kl_max=float(kl.max()),
            kl_error=float(kl.std(ddof=1) / kl.size**0.5) if kl.size > 1 else 0.0,
            top1=self._same / kl.size,
            perplexity_original=original,
            perplexity=output,
            kl_levels=tuple(zip(_LEVELS, np.percentile(kl, _LEVELS).tolist(), strict=True)),
        )


def _log_softmax(logits: Array) -> Array:
    rows = logits.astype(np.float64)
    rows -= rows.max(-1, keepdims=True)
    return np.asarray(rows - np.log(np.exp(rows).sum(-1, keepdims=True)))


def default_tokens(parameters: int) -> int:
    """Tokens of the text that are worth the time that two models of so many parameters take for them."""
    flops = _FLOPS_GPU if mx.default_device() == mx.gpu else _FLOPS_CPU
    return int(min(max(flops / (4 * max(parameters, 1)), FEWEST_TOKENS), MOST_TOKENS))


def compare(
    original: str | Path | Checkpoint | Opened,
    output: str | Path | Opened,
    text: str | None = None,
    *,
    ids: Sequence[Array] | None = None,
    tokens: int | None = None,
    window: int = WINDOW,
    memory_limit: int | None = None,
    trust_remote_code: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> Quality:
    """Measure what a converted model lost against its original, on a text.

    Both are run by mlx-lm in float32 with the values that they store, in turn on each window of the text, so that
    logits of two windows are all that is held: at most 512 MB. A model that does not fit in memory is read from disk
    as it is used, layer by layer.

    Args:
        original: The checkpoint that the output was made from: a folder, a hub id, or opened.
        output: A folder that mlx-lm loads, or opened.
        text: What both read; by default ``heldout_text()``.
        ids: Sequences of token ids [tokens] instead of a text, for models without a tokenizer; of a model that reads
            with an encoder the first half of each is read, the second written.
        tokens: The text is cut after so many tokens; by default 4,096, and less for models that are slow here.
        window: Tokens of a sequence, capped by the model's context and so that its logits take at most 256 MB.
        memory_limit: Bytes for the weights of both; default half of what is available.
        trust_remote_code: Whether code of the checkpoint may run (a tokenizer's).
        on_progress: Called with a line for each step.

    Returns:
        The figures.

    Raises:
        UsageError: The two are not versions of one model, the text is too short, or ids are not of this model.
        TokenizerError: There is a text and no tokenizer.
        UnsupportedError: mlx-lm cannot run one of them.
        NumericsError: Logits are NaN or infinite.
    """
    say = on_progress or (lambda _: None)
    one = original if isinstance(original, Opened) else open_original(original, trust_remote_code=trust_remote_code)
    two = output if isinstance(output, Opened) else open_output(output, trust_remote_code=trust_remote_code)
    notes: tuple[str, ...] = ()
    given = ids
    if ids is None:
        ids, notes = windows_for(one, two, text, tokens, window)
    else:
        _check_ids(ids, min(one.vocabulary, two.vocabulary))
    place(one, two, memory_limit)
    if given is None:
        ids, remarks = written_windows(one, ids)
        notes = (*notes, *remarks)
    (quality,) = compare_each(one, [two], ids, say)
    return replace(quality, notes=(*notes, *quality.notes))


def compare_each(
    original: Opened, outputs: Sequence[Opened], ids: Sequence[Array], say: Callable[[str], None]
) -> list[Quality]:
    """The figures of several outputs of one original, all of them placed; arguments and errors as of ``compare``."""
    tallies = [Tally() for _ in outputs]
    for number, piece in enumerate(ids):
        say(f"comparing predictions, part {number + 1} of {len(ids)}")
        theirs = original.logits(piece)
        for output, tally in zip(outputs, tallies, strict=True):
            ours = output.logits(piece)
            if theirs.shape != ours.shape:
                raise UsageError(
                    f"{output.folder} predicts {ours.shape[-1]} tokens, its original {theirs.shape[-1]}",
                    hint="give the checkpoint that it was converted from",
                )
            tally.add(theirs[:-1], ours[:-1], np.asarray(piece)[1 - len(theirs) :])
    return [
        replace(
            tally.result(),
            original_placed=original.placed,
            output_placed=output.placed,
            notes=tuple(dict.fromkeys([*original.remarks, *output.remarks])),
        )
        for output, tally in zip(outputs, tallies, strict=True)
    ]


def _check_ids(ids: Sequence[Array], vocabulary: int) -> None:
    if not ids or min(len(piece) for piece in ids) < 2:
        raise UsageError("ids: a sequence has less than two tokens", hint="give a token and the one that follows it")
    odd = [int(i) for piece in ids for i in np.unique(piece) if not 0 <= i < vocabulary]
    if odd:
        raise UsageError(
            f"ids: {odd[0]} is outside of the vocabulary of {vocabulary}", hint="use the model's tokenizer"
        )


def windows_for(
    original: Opened,
    output: Opened,
    text: str | None,
    tokens: int | None,
    window: int = WINDOW,
) -> tuple[list[Array], tuple[str, ...]]:
    """The windows that ``compare`` measures, and remarks; arguments and errors as there."""
    vocabulary = min(original.vocabulary, output.vocabulary)
    longest = [
        window,
        max(_LOGITS_BYTES // (4 * vocabulary), 16),
        *(s.context for s in (original, output) if s.context),
    ]
    return token_windows(
        original.folder,
        heldout_text() if text is None else text,
        vocabulary=vocabulary,
        tokens=tokens or default_tokens(original.parameters),
        window=max(2, min(longest)),
        trust_remote_code=original.trust_remote_code,
    )

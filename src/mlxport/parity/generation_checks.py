"""Run a model of mlx-lm in every way in which text is generated, where its logits after every token are known."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxport.parity.generation_report import Generation, GenerationCheck
from mlxport.parity.metrics import compare_logits
from mlxport.parity.recording import Array
from mlxport.quant.tolerances import Tolerance

__all__ = ["Continuation", "check_generation", "smallest_window"]

# What code of mlx-lm, or of a model for it, may raise where it cannot do something.
_FAILURES = (
    ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Continuation:
    """A prompt, what follows it, and what the original says after every token.

    Attributes:
        ids: The prompt and what follows.
        prompt: Number of tokens of the prompt, at least two.
        logits: float32, [tokens, vocabulary]; row ``i`` is of the token after ``ids[i]``.
    """

    ids: Sequence[int]
    prompt: int
    logits: Array


class _CannotError(Exception):
    """The output does not do this, and says so."""


# Of a continuation: the first token that was read, and the logits after it and those that follow.
_Rows = Iterator[tuple[Continuation, int, Array]]


def check_generation(
    model: Any,
    texts: Sequence[Continuation],
    beyond: Continuation | None,
    tolerance: Tolerance,
    reference: str,
    after: int = 3,
) -> Generation:
    """Generate what the original generates, in every way that mlx-lm has.

    Args:
        model: As mlx-lm loads it, in float32.
        texts: Prompts of different lengths; the first has most tokens after it.
        beyond: One that ends beyond the smallest window, None where the model has none or it is too long.
        tolerance: Of logits of equal weights.
        reference: Where the logits are from.
        after: Tokens that are generated after a chunked prompt, a loaded cache, a trim.
    """
    first = texts[0]
    found: list[Array] = []
    checks = [_check("tokens", _kept(_one_by_one(model, first), found), tolerance)]
    others: dict[str, _Rows] = {
        "chunks": _in_chunks(model, first, first.prompt + after),
        "batch": _in_a_batch(model, texts),
        "saved cache": _from_a_file(model, first, after),
        "trim": _trimmed(model, min(texts, key=lambda text: text.prompt), after),
    }
    window = smallest_window(model)
    if beyond is None and window is not None and window < len(first.ids):
        beyond = first
    if beyond is not None:
        others["window"] = _in_chunks(model, beyond, len(beyond.ids))
    elif window is not None:
        others["window"] = _too_far(window)
    checks += [_check(name, rows, tolerance) for name, rows in others.items()]
    theirs = first.logits[first.prompt - 1 :].argmax(-1)
    ours = np.concatenate(found)[first.prompt - 1 :].argmax(-1) if not checks[0].failure else theirs[:0]
    return Generation(len(theirs), int((ours == theirs[: len(ours)]).sum()), tuple(checks), reference)


def smallest_window(model: Any) -> int | None:
    """Tokens that the shortest of a model's caches keeps; None where all keep everything."""

    def sizes(caches: Iterable[Any]) -> Iterator[int]:
        for cache in caches:
            yield from sizes(getattr(cache, "caches", ()))
            size = getattr(cache, "max_size", None) or getattr(cache, "chunk_size", None)
            if isinstance(size, int):
                yield size

    return min(sizes(_new_cache(model)), default=None)


def _kept(rows: _Rows, found: list[Array]) -> _Rows:
    for text, start, logits in rows:
        found.append(logits)
        yield text, start, logits


def _check(name: str, rows: _Rows, tolerance: Tolerance) -> GenerationCheck:
    """Run one way of generating and compare all logits that it gives."""
    read: list[tuple[Continuation, int]] = []
    ours: list[Array] = []
    try:
        for text, start, logits in rows:
            read += [(text, start + index) for index in range(len(logits))]
            ours.append(logits)
    except _CannotError as reason:
        return GenerationCheck(name, limit=str(reason))
    except _FAILURES as error:
        at = f" after {_place(*read[-1])}" if read else ""
        return GenerationCheck(
            name, failure=f"mlx-lm cannot run it{at}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        )
    theirs = np.stack([text.logits[index] for text, index in read])
    compared = compare_logits(name, np.concatenate(ours), theirs, tolerance)
    if compared.passed:
        return GenerationCheck(name, compared.relative)
    return GenerationCheck(name, compared.relative, _first_difference(read, np.concatenate(ours), theirs, tolerance))


def _first_difference(read: list[tuple[Continuation, int]], ours: Array, theirs: Array, tolerance: Tolerance) -> str:
    """Where logits begin to differ; where none is beyond alone what all are together, the worst."""
    if ours.shape != theirs.shape:
        return f"logits have shape {ours.shape}, expected {theirs.shape}"
    a, b = (x.astype(np.float64) - x.mean(-1, keepdims=True, dtype=np.float64) for x in (ours, theirs))
    errors = np.linalg.norm(a - b, axis=-1) / np.maximum(np.linalg.norm(b, axis=-1), 1e-30)
    allowed = tolerance.required["relative"]
    wrong = np.flatnonzero(~(errors <= allowed))
    index = int(wrong[0]) if len(wrong) else int(errors.argmax())
    text, at = read[index]
    picked, wanted = int(ours[index].argmax()), int(theirs[index].argmax())
    token = f"token {picked} where the original has {wanted}, " if picked != wanted else ""
    return f"{_place(text, at)} differs: {token}relative error {errors[index]:.3g}, {allowed:.3g} allowed"


def _place(text: Continuation, index: int) -> str:
    """What comes after the token ``index`` of a text, counted from 1."""
    after = f"after a prompt of {text.prompt} tokens"
    if index < text.prompt - 1:
        return f"token {index + 2} of a prompt of {text.prompt} tokens"
    return f"generated token {index - text.prompt + 2} {after}"


def _new_cache(model: Any) -> list[Any]:
    from mlx_lm.models.cache import make_prompt_cache

    return list(make_prompt_cache(model))


def _run(model: Any, ids: Sequence[Sequence[int]], cache: list[Any]) -> Array:
    """Logits of some sequences, float32, [sequences, tokens, vocabulary]."""
    output = model(mx.array([list(row) for row in ids]), cache=cache)
    logits = np.array(getattr(output, "logits", output).astype(mx.float32))
    mx.eval([held.state for held in cache])
    return logits


def _follow(model: Any, text: Continuation, cache: list[Any], start: int, stop: int) -> _Rows:
    for index in range(start, min(stop, len(text.ids))):
        yield text, index, _run(model, [text.ids[index : index + 1]], cache)[0]


def _one_by_one(model: Any, text: Continuation) -> _Rows:
    """A prompt as a whole, then single tokens."""
    cache = _new_cache(model)
    yield text, 0, _run(model, [text.ids[: text.prompt]], cache)[0]
    yield from _follow(model, text, cache, text.prompt, len(text.ids))


def _in_chunks(model: Any, text: Continuation, stop: int) -> _Rows:
    """A prompt in pieces, the last one token, as mlx-lm reads it."""
    cache, done = _new_cache(model), 0
    for piece in (*[max(2, (text.prompt - 1) * 2 // 5)] * 3, text.prompt):
        until = min(done + piece, text.prompt - 1)
        if until > done:
            yield text, done, _run(model, [text.ids[done:until]], cache)[0]
        done = until
    yield from _follow(model, text, cache, done, stop)


def _from_a_file(model: Any, text: Continuation, after: int) -> _Rows:
    """A prompt, then its cache from a file."""
    from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

    cache = _new_cache(model)
    _run(model, [text.ids[: text.prompt]], cache)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "cache.safetensors"))
        save_prompt_cache(path, cache)
        cache = load_prompt_cache(path)
        mx.eval([held.state for held in cache])
    yield from _follow(model, text, cache, text.prompt, text.prompt + after)


def _trimmed(model: Any, text: Continuation, after: int) -> _Rows:
    """A prompt, two tokens that do not belong there, and back."""
    from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

    cache = _new_cache(model)
    _run(model, [text.ids[: text.prompt]], cache)
    _run(model, [list(text.ids[:2])[::-1]], cache)
    if not can_trim_prompt_cache(cache):
        kinds = sorted({type(held).__name__ for held in cache if not held.is_trimmable()})
        raise _CannotError(f"{' and '.join(kinds)} cannot")
    if (count := trim_prompt_cache(cache, 2)) != 2:
        raise ValueError(f"{count} tokens were trimmed, not 2")
    yield from _follow(model, text, cache, text.prompt, text.prompt + after)


def _in_a_batch(model: Any, texts: Sequence[Continuation]) -> _Rows:
    """Prompts of different lengths at once, as ``mlx_lm.generate.BatchGenerator`` reads them: padded on the right."""
    cache = [_merged(layer) for layer in zip(*(_new_cache(model) for _ in texts), strict=True)]
    lengths = [text.prompt - 1 for text in texts]
    padding = [max(lengths) - length for length in lengths]
    padded = [[*text.ids[:length], *[0] * more] for text, length, more in zip(texts, lengths, padding, strict=True)]
    for held in cache:
        held.prepare(lengths=lengths, right_padding=padding)
    logits = _refusing(lambda: _run(model, padded, cache))
    for held in cache:
        held.finalize()
    for text, length, rows in zip(texts, lengths, logits, strict=True):
        yield text, 0, rows[:length]
    for step in range(min(len(text.ids) - text.prompt for text in texts) + 1):
        places = [text.prompt - 1 + step for text in texts]
        new = [[text.ids[place]] for text, place in zip(texts, places, strict=True)]
        logits = _refusing(lambda new=new: _run(model, new, cache))  # type: ignore[misc]
        for text, place, rows in zip(texts, places, logits, strict=True):
            yield text, place, rows


def _merged(layer: Sequence[Any]) -> Any:
    if not hasattr(layer[0], "merge"):
        raise _CannotError(f"mlx-lm's {type(layer[0]).__name__} takes none")
    return layer[0].merge(list(layer))


def _refusing(run: Callable[[], Array]) -> Array:
    """What a model refuses by itself, in words about batches, is a limit of it and no failure."""
    try:
        return run()
    except ValueError as error:
        if "batch" in str(error).lower():
            raise _CannotError(" ".join(str(error).split())) from error
        raise


def _too_far(window: int) -> _Rows:
    raise _CannotError(f"{window} tokens are more than were run")
    yield

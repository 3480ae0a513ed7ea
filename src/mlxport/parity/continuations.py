"""Prompts with what the original writes after them, by transformers in torch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mlxport.model import loaded as out
from mlxport.parity import reference as ref
from mlxport.parity.far_positions import FAILURES
from mlxport.parity.generation_checks import Continuation, check_generation, smallest_window
from mlxport.parity.generation_report import Generation
from mlxport.parity.metrics import relative_error
from mlxport.parity.recording import Array
from mlxport.parity.setup import Run
from mlxport.quant.tolerances import EQUAL, ROWS

__all__ = ["followed", "probe_generation"]

STEPS = 32
_FEW = 4
_FEWER = 2  # of a model that is read from disk at each step
_PROMPTS = (11, 3, 24)  # tokens; the first is the one that most tokens follow
_STREAMED = 5_000_000_000  # parameters that the steps of such a model may add up to
_MARGIN = 8  # tokens on both sides of a window


def probe_generation(run: Run, mode: str, parameters: int, context: int | None, window: int | None) -> Generation:
    """Run an output as text is generated and compare it with its original.

    Args:
        run: The verification; its weights have been compared, and its model runs in float32.
        mode: ``full`` or ``layerwise``.
        parameters: Of the original.
        context: Tokens that the model was made for, None where nothing says.
        window: Of the original's sliding attention, None where it has none.
    """
    run.say("generating text with caches")
    limit = context or len(run.ids[0])
    streamed = mode == "layerwise"
    steps = max(_FEW, min(STEPS, _STREAMED // max(parameters, 1))) if streamed else STEPS
    few = _FEWER if streamed and steps < STEPS else _FEW
    prompts = [
        np.resize(np.roll(run.ids[0], -5 * index), max(2, min(size, limit - steps)))
        for index, size in enumerate(_PROMPTS)
    ]
    windows = [size for size in (window, smallest_window(run.model)) if size]
    long = _beyond(run.ids[0], min(windows, default=0), limit)
    source = _reference(run, mode)
    counts = [min(few if index else steps, max(limit - len(p), 1)) for index, p in enumerate(prompts)]
    texts = [source.follow(prompt, count) for prompt, count in zip(prompts, counts, strict=True)]
    beyond = texts[0] if windows and min(windows) < len(texts[0].ids) else None
    if beyond is None and long is not None:
        beyond = Continuation(long.tolist(), len(long) - 2 * _MARGIN, source.logits(long))
    found = check_generation(run.model, texts, beyond, run.equal_row, source.name, few - 1)
    gc.collect()
    return found


def followed(model: Any, prompt: Array, count: int) -> tuple[Continuation, str]:
    """The most likely token, ``count`` times, as transformers generates with its cache.

    Where that fails, or is not what the model gives for the same tokens at once (a cache that is not carried on,
    positions that ``generate`` counts otherwise), the model runs on the whole text at each step; then it is said why.
    """
    try:
        cached = _greedy(model, prompt, count)
    except FAILURES as error:  # the original's own code
        why = f"transformers does not generate with its cache ({type(error).__name__})"
    else:
        off = relative_error(cached.logits, ref.logits(model, np.asarray(cached.ids)))
        if off <= ROWS["same weights"].required["relative"]:
            return cached, ""
        why = f"transformers' generate is off from its own forward pass by {off:.1e}"
    ids = prompt
    for _ in range(count - 1):
        ids = np.append(ids, ref.logits(model, ids)[-1].argmax())
    return Continuation(ids.tolist(), len(prompt), ref.logits(model, ids)), f"{why}: whole texts instead"


def _greedy(model: Any, prompt: Array, count: int) -> Continuation:
    from transformers import GenerationConfig

    ids = torch.from_numpy(prompt.copy())[None]
    # Penalties and forced tokens, which a checkpoint may ask for, are none of the model's.
    model.generation_config = GenerationConfig(use_cache=True, pad_token_id=0)
    with torch.inference_mode():
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    steps = torch.cat(made.logits).to(torch.float32).numpy()
    logits = np.concatenate([ref.logits(model, prompt)[:-1], steps])
    return Continuation(made.sequences[0, :-1].tolist(), len(prompt), logits)


@dataclass(frozen=True)
class _Reference:
    """Where logits come from: of whole sequences, and of a prompt that is followed."""

    name: str
    logits: Callable[[Array], Array]
    follow: Callable[[Array, int], Continuation]


def _reference(run: Run, mode: str) -> _Reference:
    """The original with the very weights that the output holds; the output itself, run whole, where there is none."""
    equal = run.row().row in EQUAL
    if not equal and run.layout is None:
        run.note("what is generated was compared with the output's own logits of whole texts")
        return _of_text("the output, whole texts", lambda ids: out.logits(run.model, ids), run.ids[0])
    name = "the original" if equal else "the stored weights in torch"
    if mode == "layerwise":
        from mlxport.parity.lazy_reference import lazy_model

        model = lazy_model(run.checkpoint, layout=None if equal else run.layout)
        return _of_text(f"{name}, whole texts", lambda ids: ref.logits(model, ids), run.ids[0])
    from mlxport.parity.full import same_weights

    held = ref.load_reference(run.checkpoint, None if equal else same_weights(run))
    if not hasattr(held, "generate"):
        return _of_text(f"{name}, whole texts", lambda ids: ref.logits(held, ids), run.ids[0])
    return _Reference(f"{name}, with its cache", lambda ids: ref.logits(held, ids), _following(run, held))


def _following(run: Run, model: Any) -> Callable[[Array, int], Continuation]:
    def follow(prompt: Array, count: int) -> Continuation:
        text, why = followed(model, prompt, count)
        if why:
            run.note(why)
        return text

    return follow


def _of_text(name: str, logits: Callable[[Array], Array], text: Array) -> _Reference:
    return _Reference(name, logits, _whole(logits, text))


def _whole(logits: Callable[[Array], Array], text: Array) -> Callable[[Array, int], Continuation]:
    """A prompt followed by more of a text: any logits are as good as those after the most likely tokens."""

    def follow(prompt: Array, count: int) -> Continuation:
        ids = np.concatenate([prompt, np.resize(text, count - 1)])
        return Continuation(ids.tolist(), len(prompt), logits(ids))

    return follow


def _beyond(text: Sequence[int] | Array, window: int, limit: int) -> Array | None:
    """Tokens that end beyond a window, None where so many were not affordable."""
    size = window + _MARGIN
    if not window or size > min(len(text), limit):
        return None
    return np.asarray(text)[:size]

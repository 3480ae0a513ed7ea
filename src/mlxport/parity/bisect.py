"""Name the first module that diverges, and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from mlxport.model import loaded as out
from mlxport.parity import reference as ref
from mlxport.parity.causes import activation_cause, config_differences, tensor_cause
from mlxport.parity.metrics import relative_error
from mlxport.parity.parity_report import Divergence
from mlxport.parity.record_pairs import Pair, pairs_of
from mlxport.parity.recording import Record, recording_mlx, recording_torch
from mlxport.parity.setup import Run
from mlxport.parity.weight_errors import difference
from mlxport.quant.tolerances import diverging

__all__ = ["bisect", "first_bad", "wrong_tensors"]

_TOKENS = 64


def _only_scaled(pair: Pair, limit: float) -> bool:
    """Whether the outputs differ by one factor for all elements."""
    ours, theirs = pair.ours.output, pair.theirs.output
    if ours is None or theirs is None:
        return False
    a, b = ours.reshape(-1).astype(np.float64), theirs.reshape(-1).astype(np.float64)
    norm = float(b @ b)
    return norm > 0 and relative_error(a, b * (float(a @ b) / norm)) <= limit


def _class_name(module: Any) -> str:
    """The class as MLX or mlx-lm names it: ours are mixed in while a model is streamed."""
    names = [cls.__name__ for cls in type(module).__mro__ if not cls.__module__.startswith("mlxport.")]
    return names[0] if names else type(module).__name__


def _first(pairs: Iterable[Pair], limit: float) -> Pair | None:
    """Children end before their parents, so the first module with a good input and a bad output is the smallest."""
    pairs = list(pairs)
    bad = [p for p in pairs if (p.output_error or 0.0) > limit and (p.input_error or 0.0) <= limit]
    # A scale may be applied inside a module on one side and after it on the other: then something else is to blame.
    for pair in sorted(bad, key=lambda p: _only_scaled(p, limit)):
        return pair
    grown = [p for p in pairs if p.output_error is not None and p.input_error is not None]
    return max(grown, key=lambda p: (p.output_error or 0) / max(p.input_error or 0, 1e-7), default=None)


def first_bad(ours: dict[str, Record], theirs: dict[str, Record], *, tight: bool) -> str | None:
    """The first block whose output diverges."""
    limit = diverging(tight=tight)
    return next((p.ours.path for p in pairs_of(ours, theirs) if (p.output_error or 0) > limit), None)


def _head(model: Any) -> str | None:
    """Path of the torch model's output projection: mlx-lm calls the embedding in its place when they are tied."""
    head = model.get_output_embeddings()
    return next((path for path, module in model.named_modules() if module is head), None)


def _records(run: Run, model: Any, keep: Callable[[str], bool]) -> list[Pair]:
    ids = run.ids[0][:_TOKENS]
    with recording_torch(model, keep) as theirs:
        ref.logits(model, ids)
    with recording_mlx(run.model, keep) as ours:
        out.logits(run.model, ids)
    return pairs_of(ours, theirs, _head(model))


def wrong_tensors(run: Run) -> list[tuple[str, str]]:
    """Module path and checkpoint name of each stored tensor that is not the original's, in order of layers."""
    layout = run.layout
    if layout is None or run.weights is None or run.weights.passed:
        return []
    found = []
    for name in layout:
        tensor = run.checkpoint.tensors.get(name)
        if tensor is not None and not difference(tensor, layout, run.dtype, run.trained).ok:
            found.append((layout.stored_names(name)[0].rpartition(".")[0], name))
    return sorted(found, key=lambda pair: [(part.isdigit(), part.zfill(6)) for part in pair[0].split(".")])


def _earliest(wrong: list[tuple[str, str]], pairs: list[Pair]) -> tuple[str, str]:
    """The one whose module ran first; modules that were not recorded come last."""
    order = {p.ours.path.removesuffix(".as_linear"): place for place, p in reversed(list(enumerate(pairs)))}
    return min(wrong, key=lambda pair: order.get(pair[0], len(pairs)))


def bisect(
    run: Run,
    model: Any,
    *,
    tight: bool,
    wrong: list[tuple[str, str]],
    keep: Callable[[str], bool] = lambda _: True,
) -> Divergence | None:
    """Run both sides on a few tokens and compare every module.

    Args:
        run: The verification.
        model: The torch reference, holding the stored weights where ``tight`` and the output's values differ.
        tight: Whether both sides hold equal weights.
        wrong: What ``wrong_tensors`` found.
        keep: Paths to record.
    """
    pairs = _records(run, model, keep)
    pair: Pair | None
    if wrong:
        path, tensor = _earliest(wrong, pairs)
        pair, cause = next((p for p in pairs if p.ours.path == path), None), tensor_cause(run, tensor)
    else:
        pair = _first(pairs, diverging(tight=tight))
        if pair is None:
            return None
        path = pair.ours.path
        inside = [p for p in pairs if re.match(rf"{re.escape(path)}\.", p.ours.path)]
        changed = config_differences(run.folder, run.checkpoint)
        cause = activation_cause(pair, inside, model, changed, diverging(tight=tight))
    kind = _class_name(dict(run.model.named_modules()).get(path.removesuffix(".as_linear")))
    nan = float("nan")
    return Divergence(
        module=path,
        reference_module=pair.theirs.path if pair else "",
        mlx_class=kind,
        torch_class=pair.theirs.kind if pair else "",
        input_error=nan if pair is None or pair.input_error is None else pair.input_error,
        output_error=nan if pair is None or pair.output_error is None else pair.output_error,
        cause=cause,
    )

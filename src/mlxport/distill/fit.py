"""The training loop: Adam on small changes, measured on held-out text as they will be stored, the best kept."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlxport.distill.params import Trainable
from mlxport.distill.settings import DistillSettings

__all__ = ["Fitted", "fit"]

_WARM_UP = 0.1  # of all steps
_LEAST = 0.05  # of the learning rate, at the end
Changes = dict[str, mx.array]


@dataclass(frozen=True)
class Fitted:
    """What training found.

    Attributes:
        before: The measure of what was stored.
        after: The measure of what is best, never more.
        changes: What is best; None where nothing was better than the start.
        steps: Updates that were made.
        ended: Why it ended.
    """

    before: float
    after: float
    changes: Mapping[str, mx.array] | None
    steps: int
    ended: str


@dataclass
class _State:
    """Everything that the next step depends on."""

    changes: Changes
    best: Changes
    optimizer: optim.Optimizer
    before: float
    after: float
    step: int = 0
    stale: int = 0

    def save(self, path: Path) -> None:
        arrays = {f"changes.{name}": value for name, value in self.changes.items()}
        arrays |= {f"best.{name}": value for name, value in self.best.items()}
        flat: Any = tree_flatten(self.optimizer.state)
        arrays |= {f"optimizer.{name}": value for name, value in flat}
        numbers = {name: getattr(self, name) for name in ("before", "after", "step", "stale")}
        temporary = path.with_suffix(".tmp.safetensors")
        mx.save_safetensors(str(temporary), arrays, metadata={"state": json.dumps(numbers)})
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        loaded: Any = mx.load(str(path), return_metadata=True)
        arrays, metadata = loaded
        parts: dict[str, Changes] = {"changes": {}, "best": {}, "optimizer": {}}
        for name, value in arrays.items():
            kind, _, rest = name.partition(".")
            parts[kind][rest] = value
        mx.eval(arrays)
        self.changes, self.best = parts["changes"], parts["best"]
        self.optimizer.state = tree_unflatten(list(parts["optimizer"].items()))
        for name, value in json.loads(metadata["state"]).items():
            setattr(self, name, value)


def fit(
    parts: Sequence[Trainable],
    loss: Callable[[Sequence[int]], mx.array],
    measure: Callable[[], float],
    count: int,
    settings: DistillSettings,
    *,
    state: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Fitted:
    """Train the parts of a model; they are left as they are best.

    Args:
        parts: What is trained.
        loss: Of the sequences of these numbers, to be differentiated by what is in the modules.
        measure: What counts, on held-out text.
        count: Number of sequences to train on.
        settings: How.
        state: A file that an interrupted training goes on from.
        say: Called with a line at each measurement.
    """
    optimizer = optim.Adam(learning_rate=settings.rate, betas=(0.9, 0.99), bias_correction=True)
    now = _State({name: zero for part in parts for name, zero in part.zeros().items()}, {}, optimizer, 0.0, 0.0)
    optimizer.init(now.changes)
    if state is not None and state.is_file():
        now.load(state)
        say(f"distilling goes on from step {now.step}")
    else:
        _install(parts, now.changes)
        now.before = now.after = measure()
    ended = _train(parts, loss, measure, count, settings, now, state, say)
    _install(parts, now.best or {name: mx.zeros_like(value) for name, value in now.changes.items()})
    return Fitted(now.before, now.after, now.best or None, now.step, ended)


def _train(
    parts: Sequence[Trainable],
    loss: Callable[[Sequence[int]], mx.array],
    measure: Callable[[], float],
    count: int,
    settings: DistillSettings,
    now: _State,
    state: Path | None,
    say: Callable[[str], None],
) -> str:
    """Update ``now`` until it ends; why."""

    def changed(changes: Changes, numbers: Sequence[int]) -> mx.array:
        _install(parts, changes)
        return loss(numbers)

    step_of = mx.value_and_grad(changed)
    while now.step < settings.steps and now.stale < settings.patience:
        now.optimizer.learning_rate = _rate(now.step, settings)
        value, gradients = step_of(now.changes, _numbers(now.step, count, settings))
        now.changes = now.optimizer.apply_gradients(gradients, now.changes)
        mx.eval(value, now.changes, now.optimizer.state)
        mx.clear_cache()
        now.step += 1
        lost: Any = value.item()
        if not math.isfinite(lost):
            return f"the loss became {lost} in step {now.step}"
        if now.step % settings.every and now.step < settings.steps:
            continue
        _install(parts, now.changes)
        found = measure()
        if found < now.after:
            now.after, now.best, now.stale = found, dict(now.changes), 0
        else:
            now.stale += 1
        if state is not None:
            now.save(state)
        say(f"distilling: step {now.step} of {settings.steps}, held-out {found:.4g} (before {now.before:.4g})")
    if now.stale >= settings.patience:
        return f"no improvement in {now.stale} measurements"
    return "all steps"


def _install(parts: Sequence[Trainable], changes: Mapping[str, mx.array]) -> None:
    """Put values as they will be stored into the modules; gradients pass through the rounding."""
    for part in parts:
        values = part.values(changes)
        for name, value in values.items():
            rounded = value.astype(part.start[name].dtype).astype(mx.float32)
            values[name] = (value + mx.stop_gradient(rounded - value)).astype(part.dtype)
        part.install(values)


def _rate(step: int, settings: DistillSettings) -> float:
    """Linear warm-up, then a cosine down to a small rest."""
    warm = max(1, int(_WARM_UP * settings.steps))
    cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    return settings.rate * min(1.0, (step + 1) / warm) * (_LEAST + (1 - _LEAST) * cosine)


def _numbers(step: int, count: int, settings: DistillSettings) -> list[int]:
    """The sequences of a step: all of them, in an order of its own, before any comes again."""
    first = step * settings.batch
    orders: dict[int, Any] = {}
    chosen = []
    for place in range(first, first + settings.batch):
        round_, index = divmod(place, count)
        if round_ not in orders:
            orders[round_] = np.random.default_rng((settings.seed, round_)).permutation(count)
        chosen.append(int(orders[round_][index]))
    return chosen

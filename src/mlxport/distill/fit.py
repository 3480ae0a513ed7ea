"""The training loop: Adam on small changes, measured on held-out text as they will be stored, the best kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxport.distill.distill_settings import DistillSettings
from mlxport.distill.params import Trainable
from mlxport.output.atomic_files import replace_arrays

__all__ = ["Fitted", "fit"]

_WARM_UP = 0.1  # of all steps
_LEAST = 0.05  # of the learning rate, at the end
# Of Adam (https://arxiv.org/abs/1412.6980); the last keeps a division by nothing away.
_BETA1, _BETA2, _EPS = 0.9, 0.99, 1e-10
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
    first: Changes  # Adam's moments
    second: Changes
    best: Changes
    before: float = 0.0
    after: float = 0.0
    step: int = 0
    stale: int = 0
    share: float = 1.0  # of the learning rate, halved whenever nothing was better
    ended: str = ""

    def save(self, path: Path) -> None:
        arrays = {f"{kind}.{name}": value for kind in _KINDS for name, value in getattr(self, kind).items()}
        numbers = {name: getattr(self, name) for name in ("before", "after", "step", "stale", "share", "ended")}
        replace_arrays(path, arrays, {"state": json.dumps(numbers)})

    def load(self, path: Path) -> None:
        loaded: Any = mx.load(str(path), return_metadata=True)
        arrays, metadata = loaded
        mx.eval(arrays)
        for kind in _KINDS:
            found = {
                name.removeprefix(f"{kind}."): value for name, value in arrays.items() if name.startswith(f"{kind}.")
            }
            setattr(self, kind, found)
        for name, value in json.loads(metadata["state"]).items():
            setattr(self, name, value)

    def update(self, gradients: Changes, rate: float) -> None:
        """One step of Adam."""
        self.step += 1
        one, two = 1 - _BETA1**self.step, 1 - _BETA2**self.step
        for name, gradient in gradients.items():
            self.first[name] = _BETA1 * self.first[name] + (1 - _BETA1) * gradient
            self.second[name] = _BETA2 * self.second[name] + (1 - _BETA2) * mx.square(gradient)
            size = mx.sqrt(self.second[name] / two) + _EPS
            self.changes[name] = self.changes[name] - rate * (self.first[name] / one) / size


_KINDS = ("changes", "first", "second", "best")


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
    zeros = {name: zero for part in parts for name, zero in part.zeros().items()}
    now = _State(dict(zeros), dict(zeros), dict(zeros), {})
    if state is not None and state.is_file():
        now.load(state)
        if not now.ended:
            say(f"distilling goes on from step {now.step}")
    else:
        _install(parts, now.changes)
        now.before = now.after = measure()
    if not now.ended:
        now.ended = _train(parts, loss, measure, count, settings, now, state, say)
        now.changes, now.first, now.second = {}, {}, {}
        if state is not None:
            now.save(state)  # what is best is all that a later run needs
    _install(parts, now.best or zeros)
    return Fitted(now.before, now.after, now.best or None, now.step, now.ended)


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
        value, gradients = step_of(now.changes, _numbers(now.step, count, settings))
        now.update(gradients, now.share * _rate(now.step, settings))
        mx.eval(value, now.changes, now.first, now.second)
        mx.clear_cache()
        lost: Any = value.item()
        if not math.isfinite(lost):
            return f"the loss became {lost} in step {now.step}"
        if now.step % settings.every and now.step < settings.steps:
            continue
        _install(parts, now.changes)
        found = measure()
        if found < now.after:
            now.after, now.best, now.stale = found, dict(now.changes), 0
        else:  # back to the best, and on in smaller steps
            now.stale, now.share = now.stale + 1, now.share / 2
            now.first = {name: mx.zeros_like(value) for name, value in now.changes.items()}
            now.changes = dict(now.best or now.first)
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

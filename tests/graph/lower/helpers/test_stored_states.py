"""Scans on mlx-lm's caches give what they give token by token in torch: at once, in chunks, in padded batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_lm.models.base import create_ssm_mask
from mlx_lm.models.cache import ArraysCache

from mlxport.graph.capture import state_ops
from mlxport.graph.lower.helpers import stored_states as helpers
from mlxport.graph.lower.helpers import token_scans

B, L, HEADS, GROUPS, WIDTH, STATE = 2, 75, 4, 2, 5, 6  # more than two spans
Arrays = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Scan:
    """A scan: its inputs over time, those that have no time, and what it is in torch and in a port."""

    inputs: Callable[[], Arrays]
    fixed: Callable[[], Arrays]
    torch: Callable[[Arrays], torch.Tensor]
    port: Callable[..., mx.array]


def _delta(gate: int | None) -> Scan:
    return Scan(
        lambda: {
            "q": torch.randn(B, L, GROUPS, STATE),
            "k": torch.nn.functional.normalize(torch.randn(B, L, GROUPS, STATE), dim=-1),
            "v": torch.randn(B, L, HEADS, WIDTH),
            "g": -torch.randn(*([B, L, HEADS] + ([] if gate is None else [gate]))).exp() / 4,
            "beta": torch.rand(B, L, HEADS) * 2,
        },
        dict,
        lambda given: state_ops.gated_delta(*given.values(), None)[0],
        lambda given, *place: helpers.gated_delta(*given.values(), *place),
    )


def _turned(item: torch.Tensor) -> torch.Tensor:
    return item.transpose(1, 2)


def _recurrence(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    states = [torch.zeros(B, WIDTH)]
    for t in range(x.shape[1]):
        states.append(torch.tanh(x[:, t] + states[-1] @ weight))
    return torch.stack(states[1:], 1)


def _each_token(x: mx.array, weight: mx.array, cache: ArraysCache | None, slot: int, mask: mx.array | None) -> mx.array:
    """A module that carries a state, as a port calls it; without a cache it is given one of its own."""
    own = ArraysCache(size=1) if cache is None else cache

    def step(now: mx.array, valid: mx.array | None) -> mx.array:
        before = helpers.recall(own, slot, (B, WIDTH), mx.float32)
        state = mx.tanh(now[:, 0] + before @ weight)
        helpers.keep_token(own, slot, before, state, valid)
        return state[:, None]

    return helpers.each_token(lambda t, valid: step(x[:, t : t + 1], valid), mask, x.shape[1])


def _states(step: Callable[..., torch.Tensor], *given: torch.Tensor) -> torch.Tensor:
    """The states before and after each token, side by side."""
    states = [torch.zeros(B, *given[-1].shape[2:])]
    for t in range(L):
        states.append(step(states[-1], *(item[:, t] for item in given)))
    return torch.cat([torch.stack(states[:-1], 1), torch.stack(states[1:], 1)], -1)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    state, made = torch.zeros(B, HEADS, STATE, WIDTH), []
    for t in range(L):
        state = decay[:, t, :, None, None] * state + k[:, t, :, :, None] * v[:, t, :, None]
        made.append((q[:, t, :, None] @ state)[..., 0, :])
    return torch.stack(made, 1)


def _rows(function: Callable[..., Any]) -> Callable[..., mx.array]:
    """A scan as a module calls it that makes a row of each token."""

    def called(given: dict[str, mx.array], cache: ArraysCache | None, slot: int, mask: mx.array | None) -> mx.array:
        length = next(iter(given.values())).shape[1]
        rows = [item.reshape(-1, *item.shape[2:]) for item in given.values()]
        made = function(*rows, cache, slot, mask, length)
        made = mx.concatenate(made, axis=-1) if isinstance(made, tuple) else made
        return made.reshape(-1, length, *made.shape[1:])

    return called


def _decays(*sizes: int) -> torch.Tensor:
    """Some that forget all, some that forget nothing."""
    return torch.rand(B, L, *sizes).mul(1.6).sub(0.3).clamp(0, 1)


SCANS = {
    "linear_states": Scan(
        lambda: {"decay": _decays(WIDTH), "new": torch.randn(B, L, WIDTH)},
        dict,
        lambda given: _states(lambda state, decay, new: decay * state + new, *given.values()),
        _rows(token_scans.linear_states),
    ),
    "largest_states": Scan(
        lambda: {"added": -torch.rand(B, L, WIDTH), "new": torch.randn(B, L, WIDTH) * 2},
        dict,
        lambda given: _states(lambda state, added, new: torch.maximum(state + added, new), *given.values()),
        _rows(token_scans.largest_states),
    ),
    "linear_attention": Scan(
        lambda: {
            "q": torch.randn(B, L, HEADS, STATE),
            "k": torch.randn(B, L, HEADS, STATE),
            "v": torch.randn(B, L, HEADS, WIDTH),
            "decay": _decays(HEADS),
        },
        dict,
        lambda given: _attention(*given.values()),
        _rows(token_scans.linear_attention),
    ),
    "past_windows": Scan(
        lambda: {"x": torch.randn(B, L, WIDTH)},
        dict,
        lambda given: torch.nn.functional.pad(given["x"], (0, 0, 3, 0)).unfold(1, 4, 1).transpose(2, 3),
        _rows(lambda x, *place: token_scans.past_windows(x, 3, *place)),
    ),
    "selective_scan": Scan(
        lambda: {
            "x": torch.randn(B, L, WIDTH),
            "dt": torch.rand(B, L, WIDTH),
            "B": torch.randn(B, L, STATE),
            "C": torch.randn(B, L, STATE),
        },
        lambda: {"A": -torch.randn(WIDTH, STATE).exp()},
        lambda given: _turned(
            state_ops.selective_scan(
                *[given[name] if name == "A" else _turned(given[name]) for name in ("x", "dt", "A", "B", "C")], None
            )[0]
        ),
        lambda given, *place: helpers.selective_scan(*[given[name] for name in ("x", "dt", "A", "B", "C")], *place),
    ),
    "state_space": Scan(
        lambda: {
            "x": torch.randn(B, L, HEADS, WIDTH),
            "dt": torch.randn(B, L, HEADS),
            "B": torch.randn(B, L, GROUPS, STATE),
            "C": torch.randn(B, L, GROUPS, STATE),
        },
        lambda: {"A_log": torch.randn(HEADS), "D": torch.randn(HEADS), "dt_bias": torch.randn(HEADS)},
        lambda given: state_ops.state_space(
            given["x"], given["dt"], -given["A_log"].exp(), given["B"], given["C"], given["D"], given["dt_bias"],
            0.1, 1.0, None,
        )[0],
        lambda given, *place: helpers.state_space(
            *[given[name] for name in ("x", "dt", "A_log", "B", "C", "D", "dt_bias")], (0.1, 1.0), *place
        ),
    ),
    "wkv": Scan(
        lambda: {"k": torch.randn(B, L, WIDTH) * 4, "v": torch.randn(B, L, WIDTH)},
        lambda: {"decay": torch.randn(WIDTH) * 2, "first": torch.randn(WIDTH)},
        lambda given: state_ops.wkv(given["decay"], given["first"], given["k"], given["v"], None, None, None)[0],
        lambda given, *place: helpers.wkv(*[given[name] for name in ("decay", "first", "k", "v")], *place),
    ),
    "each_token": Scan(
        lambda: {"x": torch.randn(B, L, WIDTH)},
        lambda: {"weight": torch.randn(WIDTH, WIDTH) / 2},
        lambda given: _recurrence(given["x"], given["weight"]),
        lambda given, *place: _each_token(given["x"], given["weight"], *place),
    ),
    "gated_delta": _delta(None),
    "gated_delta of channels": _delta(STATE),
    "with_past": Scan(
        lambda: {"x": torch.randn(B, L, WIDTH)},
        lambda: {"weight": torch.randn(WIDTH, 4)},
        lambda given: _turned(state_ops.causal_conv1d(_turned(given["x"]), given["weight"], None)),
        lambda given, *place: mx.conv1d(
            helpers.with_past(given["x"], 3, *place), given["weight"][..., None], groups=WIDTH
        ),
    ),
}  # fmt: skip


def _case(name: str) -> tuple[Scan, Arrays, dict[str, mx.array], list[str]]:
    torch.manual_seed(0)
    scan = SCANS[name]
    inputs = scan.inputs()
    given = inputs | scan.fixed()
    return scan, given, {key: mx.array(item.numpy()) for key, item in given.items()}, list(inputs)


def _close(got: mx.array, wanted: torch.Tensor) -> None:
    np.testing.assert_allclose(np.array(got), wanted.numpy(), rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("chunks", [(L,), (32, 1, 7, 35), (1,) * 3 + (L - 3,)])
def test_chunks(name: str, chunks: tuple[int, ...]) -> None:
    scan, given, arrays, timed = _case(name)
    wanted = scan.torch(given)
    cache, start, parts = ArraysCache(size=1), 0, []
    for length in chunks:
        part = {key: item[:, start : start + length] if key in timed else item for key, item in arrays.items()}
        parts.append(scan.port(part, cache, 0, None))
        start += length
    _close(mx.concatenate(parts, axis=1), wanted)


@pytest.mark.parametrize("name", SCANS)
def test_without_cache(name: str) -> None:
    scan, given, arrays, _ = _case(name)
    _close(scan.port(arrays, None, 0, None), scan.torch(given))


@pytest.mark.parametrize("name", SCANS)
def test_rows_of_other_lengths(name: str) -> None:
    """Two chunks and one token: the second row's prompt ends within the second chunk, what follows is padding."""
    scan, given, arrays, timed = _case(name)
    ends, last = (L - 1, 45), L - 1
    cache, parts = ArraysCache(size=1), []
    cache.prepare(lengths=list(ends))
    for start, stop in ((0, 40), (40, last)):
        part = {key: item[:, start:stop] if key in timed else item for key, item in arrays.items()}
        mask = create_ssm_mask(part[timed[0]], cache)
        parts.append(scan.port(part, cache, 0, mask))
    cache.finalize()
    part = {key: mx.stack([item[0, last:], item[1, 45:46]]) if key in timed else item for key, item in arrays.items()}
    final = scan.port(part, cache, 0, create_ssm_mask(part[timed[0]], cache))
    wanted, got = scan.torch(given), mx.concatenate(parts, axis=1)
    _close(got[0], wanted[0, :last])
    _close(got[1, :45], wanted[1, :45])
    _close(final, torch.stack([wanted[0, last:], wanted[1, 45:46]]))

"""The ops that stand for transformers' kernels compute what its own functions in torch do."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from mlxport.graph.capture.hub_kernels import whole_kernels

B, L, HEADS, GROUPS, WIDTH, STATE = 2, 11, 4, 2, 5, 6


def _random(*sizes: int) -> torch.Tensor:
    return torch.randn(*sizes)


def _mamba() -> dict[str, Any]:
    given = {name: _random(B, WIDTH, L) for name in ("hidden_states", "dt", "z")}
    given |= {name: _random(B, STATE, L) for name in "BC"}
    return given | {
        "A": -_random(WIDTH, STATE).exp(),
        "D": _random(WIDTH),
        "delta_bias": _random(WIDTH),
        "delta_softplus": True,
        "return_last_state": True,
    }


def _mamba2() -> dict[str, Any]:
    return {
        "hidden_states": _random(B, L, HEADS, WIDTH),
        "dt": _random(B, L, HEADS),
        "A": -_random(HEADS).exp(),
        "B": _random(B, L, GROUPS, STATE),
        "C": _random(B, L, GROUPS, STATE),
        "chunk_size": 4,
        "D": _random(HEADS),
        "dt_bias": _random(HEADS),
        "initial_states": _random(B, HEADS, WIDTH, STATE),
        "dt_softplus": True,
        "dt_limit": (0.1, 1.0),
        "return_final_states": True,
    }


def _delta(heads: int, *gate: int) -> dict[str, Any]:
    return {
        "query": _random(B, L, heads, STATE),
        "key": _random(B, L, heads, STATE),
        "value": _random(B, L, HEADS, WIDTH),
        "g": -_random(B, L, HEADS, *gate).exp(),
        "beta": _random(B, L, HEADS).sigmoid(),
        "initial_state": _random(B, HEADS, STATE, WIDTH),
        "output_final_state": True,
        "use_qk_l2norm_in_kernel": True,
    }


def _wkv() -> dict[str, Any]:
    given = {"time_decay": _random(WIDTH), "time_first": _random(WIDTH)}
    given |= {"key": _random(B, L, WIDTH), "value": _random(B, L, WIDTH)}
    return given | {"state": [_random(B, WIDTH), _random(B, WIDTH).exp(), _random(B, WIDTH)], "return_state": True}


def _conv() -> dict[str, Any]:
    return {
        "hidden_states": _random(B, WIDTH, L),
        "weight": _random(WIDTH, 4),
        "bias": _random(WIDTH),
        "activation": "silu",
    }


CASES: dict[str, tuple[str, str, Callable[[], dict[str, Any]]]] = {
    "conv": ("mamba", "causal_conv1d_fn", _conv),
    "mamba": ("mamba", "mamba_selective_scan", _mamba),
    "mamba2": ("mamba2", "mamba2_chunk_scan", _mamba2),
    "wkv": ("rwkv", "rwkv_linear_attention", _wkv),
    "delta": ("qwen3_next", "torch_chunk_gated_delta_rule", lambda: _delta(GROUPS)),
    "delta of channels": ("kimi_linear", "chunk_kimi_delta_attention", lambda: _delta(HEADS, STATE)),
}


@pytest.mark.parametrize("case", CASES)
def test_as_transformers(case: str) -> None:
    model_type, name, inputs = CASES[case]
    file = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    torch.manual_seed(0)
    given = inputs()
    wanted = getattr(file, name)(**given)
    module = torch.nn.Module()
    module.__class__ = type("OfFile", (torch.nn.Module,), {"__module__": file.__name__})
    with whole_kernels(module):
        whole = getattr(file, name)
        got = whole(**given)
    assert getattr(file, name) is not whole, "the file has its own functions back"
    for ours, theirs in zip(tree_leaves(got), tree_leaves(wanted), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

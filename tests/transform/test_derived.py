"""What follows from a trace: the program of its pipeline and of a step that quantizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from stored import store_random

import mlxport.transform.derived as derived
from mlxport.transform import derive, trace

Arrays = dict[str, mx.array]


def _triple(weight: mx.array) -> Arrays:
    return dict(zip(("w.weight", "w.scales", "w.biases"), mx.quantize(weight, group_size=64, bits=4), strict=True))


STEPS: dict[str, Callable[[Arrays], Arrays]] = {
    "nothing": lambda t: t,
    "quantized": lambda t: {"v": t["v"], **_triple(t["w.weight"])},
    "one is left out": lambda t: _triple(t["w.weight"]),
    "computed first": lambda t: {"v": t["v"], **_triple(t["w.weight"] * 2)},
}


@pytest.mark.parametrize("name", STEPS)
def test_what_follows_is_what_a_trace_of_both_makes(name: str, tmp_path: Path, monkeypatch):
    refs = store_random(tmp_path, a=("F32", (8, 128)), v=("BF16", (4,)))

    def first(t: Arrays) -> Arrays:
        return {"w.weight": t["a"].astype(mx.bfloat16), "v": t["v"] + 1}

    def both(t: Arrays) -> Arrays:
        return STEPS[name](first(t))

    traces = []
    monkeypatch.setattr(derived, "trace", lambda *given: traces.append(given) or trace(*given))
    program, wanted = trace(first, refs), trace(both, refs)
    stand_ins = {n: mx.zeros(o.shape, dtype=o.dtype) for n, o in program.outputs.items()}
    found = derive(program, stand_ins, lambda: STEPS[name](stand_ins), both)
    assert len(traces) == (name == "computed first")
    described = [
        {n: (o.shape, o.dtype, o.quant, o.part, o.value is None) for n, o in p.outputs.items()} for p in (found, wanted)
    ]
    assert described[0] == described[1]

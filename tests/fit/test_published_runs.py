"""What is planned beside what runs on Macs took, as people published them; the table has their sources."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from models import build

from mlxport.fit.fit_report import HEADROOM
from mlxport.fit.footprint import Footprint
from mlxport.fit.generation_rate import tokens_per_second, usual_rate
from mlxport.fit.hardware import named_machine
from mlxport.fit.liveness import METAL
from mlxport.fit.quant_settings import Setting, measure

TABLE = json.loads(Path(__file__).with_name("published_runs.json").read_text())
RUNS = TABLE["runs"]
MEMORY = [run for run in RUNS if "peak_gb" in run]


def told(run: dict[str, Any]) -> str:
    return f"{run['model']}-{run['quantize'] or 16}-{run['machine']}-{run['context']}".replace(" ", "_")


@functools.cache
def planned(name: str) -> tuple[nn.Module, Footprint, dict[str, float], int]:
    """The model, and what its step reads and computes, from the graph of four bits as ``plan`` has it."""
    model, packed = (build("llama", mx.bfloat16, **TABLE["models"][name]) for _ in range(2))
    nn.quantize(packed, group_size=64, bits=4)
    footprint = Footprint(packed, METAL)
    return model, footprint, footprint.read_shares(64), footprint.operations(64)


def read(run: dict[str, Any]) -> tuple[float, int]:
    """Bytes and operations of a token of a run."""
    model, footprint, shares, operations = planned(run["model"])
    return measure(model, Setting(run["quantize"]), shares).read + footprint.cache_at(run["context"]), operations


@pytest.mark.parametrize("run", RUNS, ids=told)
def test_rates_are_within_what_is_said(run):
    machine = named_machine(run["machine"])
    low, high = tokens_per_second(machine, *read(run))
    assert low <= run["tokens_per_second"] <= high
    assert high < 2 * low


def test_most_rates_are_near_the_usual_one():
    ratios = sorted(usual_rate(named_machine(run["machine"]), *read(run)) / run["tokens_per_second"] for run in RUNS)
    assert 0.97 < ratios[len(ratios) // 2] < 1.06
    assert all(0.85 < ratio < 1.2 for ratio in ratios[2:-2])


@pytest.mark.parametrize("run", MEMORY, ids=told)
def test_peaks_are_within_the_headroom_of_what_is_said(run):
    model, footprint, _, _ = planned(run["model"])
    setting = measure(model, Setting(run["quantize"]), {})
    missing = run["peak_gb"] * 1e9 - setting.nbytes - footprint.at(run["context"]).peak
    assert -0.05 * run["peak_gb"] * 1e9 < missing < HEADROOM / 2


def test_every_run_has_a_source():
    assert {run["source"] for run in RUNS} == set(TABLE["sources"])
    assert all("github.com/" in text or "mlx-lm" in text for text in TABLE["sources"].values())


def test_time_by_layer():
    """Some 65 µs of a dense layer and 104 of a mixture, beside what reading its weights takes."""
    for name, layers, expected in (("Qwen3-4B", 36, 65e-6), ("Qwen3-30B-A3B", 48, 104e-6)):
        operations = planned(name)[3]
        seconds = 1 / usual_rate(named_machine("M4 Max 64GB"), 0, operations)
        assert seconds / layers == pytest.approx(expected, rel=0.05)


def test_the_graph_is_what_costs_a_small_model():
    machine = named_machine("M4 Max 64GB")
    small, large = tokens_per_second(machine, 1e6, 600), tokens_per_second(machine, 1e6, 1200)
    assert small[0] == pytest.approx(2 * large[0], rel=0.01) and small[1] < 1050

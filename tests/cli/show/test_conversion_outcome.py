"""What a person sees of a conversion: the plan, what was left out and why, and how it ended."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from mlxport import convert
from mlxport.cli.show.conversion_outcome import show_conversion
from mlxport.cli.show.parity_table import show_parity
from mlxport.parity.parity_report import Comparison, ParityReport


@pytest.fixture(scope="module")
def planned(_llama, tmp_path_factory):
    return convert(_llama, tmp_path_factory.mktemp("planned") / "[red]out", quantize=4, dry_run=True)


def words(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_plan_alone(planned, capsys):
    show_conversion(planned)
    lines = words(capsys.readouterr().out)
    plan = planned.plan
    assert f"parameters {plan.parameters:,}" in lines
    assert f"quantized {len(plan.quantized)} modules with affine 4 bits, group size 64" in lines
    assert f"bits per weight {plan.bits_per_weight:.3f}" in lines
    assert all(any(shard.filename in line for line in lines) for shard in plan.shards)
    assert any(line.startswith("not quantized: ") and line.endswith("MLX has no quantized RMSNorm") for line in lines)
    assert lines[-1] == f"dry run: nothing was written to {planned.destination}", "a path is no markup"


def test_what_was_not_verified_says_how_to(planned, capsys):
    show_conversion(replace(planned, dry_run=False, not_verified="not verified: [b]no torch", notes=("[i]a note",)))
    lines = words(capsys.readouterr().out)
    assert {"note: [i]a note", "not verified: [b]no torch"} <= {*lines}
    assert lines[-2:] == [
        f"to verify: mlxport verify {planned.destination} --against SRC",
        f"done: {planned.destination}",
    ]


def compared(name: str, top1: float, passed: bool) -> Comparison:
    return Comparison(
        name=name, positions=20, max_abs=1.0, mean_abs=0.5, relative=0.1, cosine_min=0.9, cosine_mean=0.99, top1=top1,
        kl_mean=0.25, passed=passed, thresholds={}, row="quantized", reason="a test",
    )  # fmt: skip


def test_a_row_for_each_comparison():
    rows = (compared("output vs original", 0.75, True), compared("output vs stored", 0.5, False))
    report = ParityReport("full", "float32", 4, 20, rows, False, problems=("[b]lost",), notes=("a note",))
    out = io.StringIO()
    show_parity(report, Console(file=out, width=160))
    lines = words(out.getvalue())
    assert lines[0] == "parity (full, 20 tokens)"
    assert any("output vs original" in line and "75.0%" in line and "pass" in line for line in lines)
    assert any("output vs stored" in line and "50.0%" in line and "FAIL" in line for line in lines)
    assert lines[-2:] == ["wrong: [b]lost", "note: a note"]

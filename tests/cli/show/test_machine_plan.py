"""What a person sees of a plan."""

from __future__ import annotations

import io
import shlex

import pytest
from rich.console import Console

from mlxport.cli.show.machine_plan import show_fit
from mlxport.convert.options import ConvertOptions
from mlxport.convert.resolved_options import resolve
from mlxport.fit import FitReport, FitRow, named_machine
from mlxport.fit.hardware import Machine, running_on
from mlxport.types import CalibrationPlan

GOOD = FitRow("4 bits", "4", 4.5, 4_500_000_000, 500_000_000, 600_000_000, 100_000_000, 5120, (11.5, 17.8))
BAD = FitRow("[red]8 bits", "8", 8.5, 8_500_000_000, 500_000_000, 600_000_000, -4_000_000_000, 0, None)
FIVE = FitRow("5 bits", "5", 5.5, 4_500_000_000, 500_000_000, 600_000_000, 900_000_000, 5120, (11.5, 17.8))
PLAIN = FitRow("float16", None, 4.5, 4_500_000_000, 500_000_000, 600_000_000, 900_000_000, 5120, (11.5, 17.8))
HOURS = CalibrationPlan("default", "", 16384, 32, 49_759.0, 5_130_000_000)
NOT = FitRow("mxfp4", "mxfp4", problem="[bold]no module supports it")


def shown(report: FitReport) -> str:
    out = io.StringIO()
    show_fit(report, Console(file=out, soft_wrap=True, highlight=False, width=60))
    return out.getvalue()


def test_what_fits():
    machine = named_machine("M2 8GB")
    rows = (GOOD, BAD, NOT)
    text = shown(FitReport("./a model", machine, 4096, 8192, 8, "bfloat16", rows, "4 bits", ("[i]a note",)))
    assert "./a model on M2 8GB: 5.76 GB for the GPU, 100 GB/s" in text
    assert "4,096 tokens of context: a cache of 8 bits of 500 MB, and 600 MB to work with" in text
    lines = {line.split("  ")[1].strip(): line.split() for line in text.splitlines() if line.startswith("  ")}
    assert lines["4 bits"][2:] == [
        "4.50",
        "4.5",
        "GB",
        "5.6",
        "GB",
        "100",
        "MB",
        "left,",
        "tight",
        "5,120",
        "11.5–17.8",
    ]
    assert lines["[red]8 bits"][-5:] == ["4", "GB", "short", "none", "unknown"]
    assert "not mxfp4: [bold]no module supports it\nnote: [i]a note\n" in text
    assert "to convert: mlxport convert './a model' DST -q 4 --dtype bfloat16\n" in text
    assert "\ntight: less than 300 MB left" in text


def test_what_does_not_fit():
    machine = Machine("M9", 8, 5_000_000_000, None)
    report = FitReport(
        "a", machine, 4096, None, None, "", (BAD,), larger_machines=("M1 16GB",), larger_setting="4 bits"
    )
    assert shown(report).splitlines()[-2:] == [
        "nothing fits M9 8GB with 4,096 tokens of context",
        "what would: 4 bits on M1 16GB",
    ]
    nowhere = FitReport("a", machine, 4096, None, None, "", (BAD,), larger_setting="4 bits")
    assert "no machine of the table has the memory for 4 bits" in shown(nowhere)


def test_little_is_warned_of():
    low = FitRow("2 bits", "2", 2.5, 1000, 1, 1, 1, 64, (2000.0, 3000.0))
    text = shown(FitReport("a", named_machine("M2 8GB"), 64, None, None, "", (low,), "2 bits"))
    assert "less than four bits a weight" in text and "over 1,000" in text


@pytest.mark.parametrize(
    ("machine", "row", "changes", "expected"),
    [
        (named_machine("M2 8GB"), GOOD, {}, 'DST --fit "M2 8GB" --context 4096'),
        (named_machine("M2 8GB"), GOOD, {"dtype": "bfloat16"}, "--context 4096 --dtype bfloat16"),
        (named_machine("M2 8GB"), GOOD, {"calibration": HOURS}, "--calibrate default"),
        (Machine("M9", 8, 5_760_000_000, None), GOOD, {}, "DST --fit --context 4096"),
        (named_machine("M2 8GB"), GOOD, {"kv_bits": 8}, None),  # --fit plans without
        (named_machine("M2 8GB"), FIVE, {}, None),
        (named_machine("M2 8GB"), PLAIN, {}, None),
    ],
)
def test_fewer_than_five_bits_have_a_better_way(machine, row, changes, expected):
    values = {"kv_bits": None, "dtype": "", **changes}
    text = shown(FitReport("m", machine, 4096, None, rows=(row,), recommended=row.name, **values))
    lines = [line for line in text.splitlines() if line.startswith("to lose less")]
    assert len(lines) == (expected is not None)
    if expected is not None:
        assert lines[0].endswith(expected) and ("and calibrated" in lines[0]) == ("--calibrate" in lines[0])
        words = shlex.split(lines[0].partition("mlxport convert ")[2])[2:]
        given = dict(zip(words[0::2], words[1::2], strict=False)) if "--fit --context" not in lines[0] else {}
        options = {name.removeprefix("--"): value for name, value in given.items()}
        if options:
            options["context"] = int(options["context"])
            assert resolve(ConvertOptions(**options)).limit.machine == machine


def test_times_are_rough_and_say_of_what_machine():
    report = FitReport("m", named_machine("M2 8GB"), 4096, None, None, "", (GOOD,), "4 bits", calibration=HOURS)
    assert f"about 14 hours and 5.13 GB of memory on this machine ({running_on()})" in shown(report)

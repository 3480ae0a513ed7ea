"""What a person sees of a plan."""

from __future__ import annotations

import io

from rich.console import Console

from mlxport.cli.show.machine_plan import show_fit
from mlxport.fit import FitReport, FitRow, named_machine
from mlxport.fit.hardware import Machine

GOOD = FitRow("4 bits", "4", 4.5, 4_500_000_000, 500_000_000, 600_000_000, 100_000_000, 5120, (11.5, 17.8))
BAD = FitRow("[red]8 bits", "8", 8.5, 8_500_000_000, 500_000_000, 600_000_000, -4_000_000_000, 0, None)
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
    assert lines["4 bits"][2:] == ["4.50", "4.5", "GB", "5.6", "GB", "100", "MB", "left", "5,120", "11.5–17.8"]
    assert lines["[red]8 bits"][-5:] == ["4", "GB", "short", "none", "unknown"]
    assert "not mxfp4: [bold]no module supports it\nnote: [i]a note\n" in text
    assert text.endswith("to convert: mlxport convert './a model' DST -q 4 --dtype bfloat16\n")


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

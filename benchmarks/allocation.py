"""One setting for all modules beside bits chosen by module, at equal bits per weight: divergence and time.

python benchmarks/allocation.py [--models FOLDER …] [--bits 4 3 2] [--output docs/quantizers.md]

Round-to-nearest in groups of 64 says how many bits per weight each row has; ``--target-bpw`` gets the same. What is
measured, and on which text, is as in ``quantizers.py``. Bits are chosen without data: on tokens that the model writes
itself, which are others than those that it is measured on. Seconds are those of processors, of a whole conversion.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from quantizers import ROOT, Language

GROUP = 64
MODELS = [ROOT / "examples/tiny-llama", ROOT.parent / "shared/data/stories260K"]
BEGIN, END = "<!-- allocation -->", "<!-- end of allocation -->"


class Row(NamedTuple):
    """One line of the table."""

    model: str
    bits: int
    method: str
    stored: float
    divergence: float
    relative: float
    seconds: float


def rows(model: Language, bits: int) -> Iterator[Row]:
    """Round-to-nearest, the search, and both quantizers with bits chosen by module."""
    first = 0.0
    target = 0.0
    for method in ("rtn", "search", "rtn, bits by module", "search, bits by module"):
        quantizer, _, chosen = method.partition(", ")
        options = {"target_bpw": target} if chosen else {"quantize": bits, "q_group_size": GROUP}
        start = time.process_time()
        report, _, divergence = model.converted(quantizer=quantizer, **options)
        first, target = first or divergence, target or report.plan.bits_per_weight
        took = time.process_time() - start
        yield Row(
            model.source.name, bits, method, report.plan.bits_per_weight, divergence, divergence / first, took
        )  # fmt: skip


def table(found: list[Row]) -> str:
    """Markdown."""
    lines = ["| source | bits | method | bits per weight | KL | of rtn | seconds |", "|---|---|---|---|---|---|---|"]
    for row in found:
        figures = f"{row.stored:.3f} | {row.divergence:.4f} | {row.relative:.2f} | {row.seconds:.1f}"
        lines.append(f"| {row.model} | {row.bits} | {row.method} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write between the markers of the output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="*", default=MODELS, help="measured on their heldout.txt if any")
    parser.add_argument("--bits", type=int, nargs="*", default=[2, 3, 4])
    parser.add_argument("--output", type=Path, help="a file whose table, between two markers, is replaced")
    options = parser.parse_args()
    found = []
    for source in options.models:
        if not source.is_dir():
            print(f"skipped: {source} is not there")
            continue
        texts = [folder / "heldout.txt" for folder in (source, source.parent) if (folder / "heldout.txt").is_file()]
        with tempfile.TemporaryDirectory() as folder:
            model = Language(source, Path(folder), texts[0] if texts else None)
            for bits in options.bits:
                for row in rows(model, bits):
                    found.append(row)
                    print(row, flush=True)
    print(table(found))
    if options.output:
        head, _, rest = options.output.read_text(encoding="utf-8").partition(BEGIN)
        tail = rest.partition(END)[2]
        options.output.write_text(f"{head}{BEGIN}\n\n{table(found)}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()

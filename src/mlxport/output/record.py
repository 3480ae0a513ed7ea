"""``mlxport.json`` in the output: what it was made from, how, with which versions, and what was measured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlxport._version import __version__
from mlxport.errors import SourceError
from mlxport.output.blocks import Findings
from mlxport.output.shards import Written
from mlxport.source.jsonfile import read_object
from mlxport.types import Checkpoint, Plan

_PACKAGES = ("mlx", "mlx-lm", "transformers", "safetensors", "numpy", "torch")


def versions() -> dict[str, str]:
    """Versions of mlxport and of the packages that a result depends on, as far as they are installed."""
    found = {"mlxport": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def weight_name(checkpoint: Checkpoint, path: Path) -> str:
    """How a weights file is called in the record: its path within the source (an index may name folders)."""
    return path.relative_to(checkpoint.weights_root).as_posix()


def make_record(
    source: str,
    checkpoint: Checkpoint,
    plan: Plan,
    *,
    options: Mapping[str, Any],
    inputs: Mapping[str, str],
    written: Mapping[str, Written],
    notes: tuple[str, ...],
    parity: Mapping[str, Any] | None,
    tokenizer: Mapping[str, Any] | None,
    not_verified: str,
    activations: Mapping[str, Any] | None = None,
    distilled: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
    allocation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record as one JSON object; no time stamps, so equal conversions leave equal records.

    Args:
        source: The path or repository as the user gave it.
        checkpoint: The opened source.
        plan: What was written.
        options: The options that were asked for.
        inputs: sha256 of every weights file of the source, by name.
        written: Every output shard, by name.
        notes: Changes of the config and other remarks.
        parity: Figures of the verification, None if there was none.
        tokenizer: Figures of the tokenizer's round trip, None if there was none.
        not_verified: Why there was no verification.
        activations: The largest ones, where they were measured.
        distilled: Figures of the distillation, None if there was none.
        generation: Settings that ``mlxport generate`` uses unless told otherwise, None for none.
        allocation: What was chosen for each module under a limit, None where there was none.
    """
    findings = Findings()
    for shard in written.values():
        findings.merge(shard.findings)
    files = {
        name: {"sha256": inputs[name], "size": path.stat().st_size}
        for path in checkpoint.weight_files
        for name in [weight_name(checkpoint, path)]
    }
    return {
        "mlxport": __version__,
        "source": {"name": source, "repo": checkpoint.repo_id, "revision": checkpoint.revision, "files": files},
        "options": dict(options),
        "versions": versions(),
        "output": {
            "files": {name: {"sha256": w.sha256, "size": w.nbytes} for name, w in written.items()},
            "dtype": plan.dtype,
            "parameters": plan.parameters,
            "bits_per_weight": round(plan.bits_per_weight, 4),
            "quantized": {path: spec.as_config() for path, spec in plan.quantized.items()},
            "kept": dict(plan.kept),
            "dropped": list(plan.dropped),
            **({"left_out": [asdict(part) for part in plan.left_out]} if plan.left_out else {}),
        },
        **({"allocation": allocation} if allocation else {}),
        "config_changes": list(notes),
        "nonfinite": findings.nonfinite,
        "overflowed": findings.overflowed,
        "verified": bool(parity and parity.get("passed")),
        "not_verified": not_verified,
        "parity": parity,
        "tokenizer": tokenizer,
        **({"activations": dict(activations)} if activations else {}),
        **({"distilled": dict(distilled)} if distilled else {}),
        **({"generation": dict(generation)} if generation else {}),
    }


def read_record(folder: Path) -> dict[str, Any]:
    """The record of an output folder, empty where it has none.

    Raises:
        SourceError: It cannot be read, or is no record.
    """
    path = folder / "mlxport.json"
    return read_object(path, SourceError) if os.path.lexists(path) else {}

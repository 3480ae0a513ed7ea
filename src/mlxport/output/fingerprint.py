"""What the bytes of an unfinished output depend on: an interrupted run goes on only where all of it is the same."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlxport.layouts.conversion import Conversion
from mlxport.output.record import versions
from mlxport.source import hash_file
from mlxport.transform import program_digest
from mlxport.types import Checkpoint, Plan

__all__ = ["fingerprint", "other_parts"]

_WEIGHTS, _CONFIG, _CODE, _TOKENIZER = "the weight files", "config.json", "the code", "the tokenizer"


def fingerprint(
    checkpoint: Checkpoint, conversion: Conversion, plan: Plan, options: Mapping[str, Any], reads_text: bool
) -> dict[str, str]:
    """A hash for each thing that decides what is in the shards, by what a user calls it.

    Names, shapes and dtypes are not enough: a multiplier of config.json changes none of them. What MLX's trace could
    not follow depends on config, code and versions, so these count by themselves.

    Args:
        checkpoint: The source; its files are as they were when it was opened.
        conversion: What is written.
        plan: Into which files.
        options: Those that decide the bytes.
        reads_text: Whether the shards depend on a text too, and so on how it is cut into tokens.
    """
    shards = [[shard.filename, [tensor.name for tensor in shard.tensors]] for shard in plan.shards]
    parts: dict[str, Any] = {
        "the source": [str(checkpoint.place.resolve()), checkpoint.revision],
        _WEIGHTS: _states(checkpoint, checkpoint.weight_files),
        _CONFIG: [checkpoint.config, conversion.config],
        "how the weights are computed": [program_digest(conversion.program, checkpoint.weights_root), shards],
        "the options": dict(options),
    }
    code = [path for path in checkpoint.side_files if path.suffix == ".py" and checkpoint.trust_remote_code]
    tokenizer = [path for path in checkpoint.side_files if path.suffix not in (".py", ".md") and reads_text]
    parts |= {_CODE: _contents(checkpoint, code), _TOKENIZER: _contents(checkpoint, tokenizer)}
    parts |= {f"the version of {name}": number for name, number in versions().items()}
    return {name: _hash(part) for name, part in parts.items()}


def other_parts(known: Any, now: Mapping[str, str]) -> str:
    """Which parts of two fingerprints differ, with their verb; ``known`` is as a file has it, so anything at all."""
    if not isinstance(known, dict):
        return "the version of mlxport is another one"
    names = [name for name in {**now, **known} if known.get(name) != now.get(name)]
    causes = [name for name in names if name != "how the weights are computed"] or names
    return f"{', '.join(causes)} changed"


def _states(checkpoint: Checkpoint, paths: Iterable[Path]) -> list[Any]:
    """How the files were when they were opened; not which they are: not every disk keeps numbers over a restart."""
    found = ((_within(checkpoint, path), checkpoint.states.get(path)) for path in paths)
    return [[name, state and (state.nbytes, state.modified, state.changed)] for name, state in found]


def _contents(checkpoint: Checkpoint, paths: Iterable[Path]) -> list[Any]:
    return [[_within(checkpoint, path), hash_file(path)] for path in paths]


def _within(checkpoint: Checkpoint, path: Path) -> str:
    root = checkpoint.weights_root if path in checkpoint.weight_files else checkpoint.root
    return os.path.relpath(path, root)


def _hash(part: Any) -> str:
    return hashlib.sha256(json.dumps(part, sort_keys=True, default=str).encode()).hexdigest()

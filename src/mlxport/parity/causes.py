"""From what differs to why: evidence in tensors, in activations and in the config."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlxport.model_config import ModelConfig
from mlxport.parity import reference as ref
from mlxport.parity.record_pairs import Pair
from mlxport.parity.setup import Run
from mlxport.parity.torch_rows import read_block
from mlxport.parity.weight_errors import difference
from mlxport.types import Checkpoint

__all__ = ["activation_cause", "config_differences", "tensor_cause"]

_ROWS = 256  # of a tensor that are looked at


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    scale = float(b.square().mean().sqrt())
    return float((a - b).square().mean().sqrt()) / scale if scale else float("inf")


def _twin(run: Run, name: str, stored: torch.Tensor, bound: float) -> str | None:
    """Another checkpoint tensor whose values these are."""
    shape = run.checkpoint.tensors[name].shape
    for other, tensor in run.checkpoint.tensors.items():
        if other != name and tensor.shape == shape and tensor.dtype in ("F16", "BF16", "F32"):
            rows = read_block(tensor, 0, stored.shape[0]) if shape else read_block(tensor)
            if _distance(stored, rows.to(torch.float32)) <= bound:
                return other
    return None


def _reordered(stored: torch.Tensor, original: torch.Tensor, bound: float) -> str | None:
    """Whether the same values are there in another order within packed words."""
    if stored.shape[-1] % 8:
        return None
    words = stored.unflatten(-1, (-1, 8))
    orders = {"each pair": [1, 0, 3, 2, 5, 4, 7, 6], "each word": [7, 6, 5, 4, 3, 2, 1, 0]}
    for where, order in orders.items():
        if _distance(words[..., order].flatten(-2), original) <= bound:
            return where
    return None


def tensor_cause(run: Run, name: str) -> str:
    """What is wrong with one stored tensor, by its checkpoint name."""
    assert run.layout is not None
    tensor, stored_name = run.checkpoint.tensors[name], run.layout.stored_names(name)[0]
    found = difference(tensor, run.layout, run.dtype, run.trained)
    head = f"Stored tensor {stored_name} is not {name} of the original: "
    if math.isinf(found.relative):
        return f"{head}it {found.problem}."
    first = found.row // _ROWS * _ROWS if tensor.shape else 0
    rows = slice(first, first + _ROWS)
    stored = run.layout.rows(name)[rows] if tensor.shape else run.layout.rows(name)
    original = (read_block(tensor)[rows] if tensor.shape else read_block(tensor)).to(torch.float32)
    shift = stored - original
    head += f"largest difference {float(shift.abs().max()):.3g}, relative {found.relative:.3g}. "
    if abs(float(shift.mean())) > 1e-3 and float(shift.std()) < 0.02 * abs(float(shift.mean())):
        return f"{head}Every element differs by {float(shift.mean()):.3g}: a shift such as 1 + w is missing or doubled."
    if len(tensor.shape) == 2 and tensor.shape[0] == tensor.shape[1]:
        whole = read_block(tensor).to(torch.float32).T[rows]
        if _distance(stored, whole) <= found.bound:
            return f"{head}It is its transpose."
    if found.relative > found.bound and (twin := _twin(run, name, run.layout.rows(name)[:_ROWS], found.bound)):
        return f"{head}Its values are those of {twin}: tensors were swapped."
    if order := _reordered(stored, original, found.bound):
        return f"{head}The same values stand in another order within {order} of a packed weight."
    count = int((shift.abs() > 4 * found.bound * original.abs().mean()).sum())
    return f"{head}{count} of {shift.numel()} elements from row {first} on differ: corrupted."


_IGNORED = frozenset(
    "architectures dtype torch_dtype transformers_version quantization quantization_config _name_or_path model_type "
    "bos_token_id eos_token_id pad_token_id use_cache rope_type".split()
)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the language model at one level."""
    merged = {key: value for part in ModelConfig(config).parts for key, value in part.items()}
    for nested in ("rope_parameters", "rope_scaling"):
        merged.update({k: v for k, v in (merged.get(nested) or {}).items() if not isinstance(v, (dict, list))})
    return merged


def config_differences(folder: Path, checkpoint: Checkpoint) -> list[str]:
    """Settings that the output's config.json gives otherwise than transformers reads the original's."""
    theirs = _flat(ref.text_config(ref.load_config(checkpoint)).to_dict())
    ours = _flat(json.loads((folder / "config.json").read_text()))
    lines = []
    for key, value in ours.items():
        if key in _IGNORED or key not in theirs or isinstance(value, (dict, list)):
            continue
        if value != theirs[key] and not isinstance(theirs[key], (dict, list)):
            lines.append(f"{key} is {value} in the output's config, {theirs[key]} in the original")
    missing = [k for k in ("rope_theta", "partial_rotary_factor") if theirs.get(k) is not None and k not in ours]
    return lines + [f"{key} is absent from the output's config, {theirs[key]} in the original" for key in missing]


def activation_cause(pair: Pair, inside: list[Pair], model: Any, changed: list[str], limit: float) -> str:
    """Why a module's output diverges though its input agrees."""
    config = _positions(pair, model, limit) + (f" In config.json: {'; '.join(changed)}." if changed else "")
    good = [p for p in inside if p.output_error is not None and p.output_error <= limit]
    starved = [p for p in inside if p.input_error is not None and p.input_error > limit]
    if inside and good and starved:
        name = starved[0].ours.path.rpartition(".")[2]
        fine = ", ".join(dict.fromkeys(p.ours.path.rpartition(".")[2] for p in good[:4]))
        attention = "attn" in pair.ours.path or "attention" in pair.ours.path.lower()
        what = "position encoding, mask or scale of the attention" if attention else "what is computed between them"
        return f"Its {fine} agree, and what its {name} receives does not: look at the {what}.{config}"
    if (norm := _norm_cause(pair, model)) is not None:
        return norm + config
    weight = "its weight" if not inside else "its own computation"
    return f"Its input agrees, its output does not: look at {weight}.{config}"


def _positions(pair: Pair, model: Any, limit: float) -> str:
    """From which position on the outputs differ: a window, a scaling of long inputs, or a rotation shows there."""
    ours, theirs = pair.ours.output, pair.theirs.output
    if ours is None or theirs is None or theirs.ndim != 3 or ours.shape != theirs.shape or len(theirs) != 1:
        return ""
    gaps = np.linalg.norm(ours[0] - theirs[0], axis=-1) / np.maximum(np.linalg.norm(theirs[0], axis=-1), 1e-30)
    good = int(np.argmax(gaps > limit))
    if good == 0:
        return ""
    settings = ref.text_config(model.config).to_dict()
    window = [f"{name} of the original" for name, value in settings.items() if value == good and good > 1]
    known = f", which is {' and '.join(window)}" if window else ""
    return f" The first {good} position{'s agree' if good > 1 else ' agrees'}{known}."


def _norm_cause(pair: Pair, model: Any) -> str | None:
    """A factor per channel that is the same at every position: a weight applied in another way."""
    ours, theirs = pair.ours.output, pair.theirs.output
    module = dict(model.named_modules()).get(pair.theirs.path)
    weight = getattr(module, "weight", None)
    if ours is None or theirs is None or weight is None or weight.ndim != 1 or ours.size != theirs.size:
        return None
    a, b = ours.reshape(-1, theirs.shape[-1]), theirs.reshape(-1, theirs.shape[-1])
    factor = (a * b).sum(0) / np.maximum((b * b).sum(0), 1e-30)
    if np.abs(a - b * factor).max() > 1e-3 * np.abs(a).max():
        return None
    w = (weight + 0).detach().to(torch.float32).numpy()
    for ratio, how in ((w / (1 + w), "w instead of 1 + w"), ((1 + w) / w, "1 + w instead of w")):
        if np.allclose(factor, ratio, rtol=1e-2, atol=1e-3):
            return f"Its output is scaled by {how}."
    return "Its output differs by a factor per channel, the same at every position: its weight is applied otherwise."

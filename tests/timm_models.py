"""Tiny random models of timm, saved as timm publishes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

LABELS = ["one", "two", "three", "four"]
PRETRAINED: dict[str, Any] = {
    "input_size": [3, 32, 32],
    "fixed_input_size": False,
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


def timm_is_here() -> bool:
    """Whether timm loads: its own torchvision may be built for another torch."""
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return True


def timm_config(architecture: str, **fields: Any) -> dict[str, Any]:
    """A config.json of timm; ``pretrained`` are fields of its ``pretrained_cfg``."""
    pretrained = {**PRETRAINED, **fields.pop("pretrained", {})}
    return {"architecture": architecture, "num_classes": 4, "num_features": 96, "pretrained_cfg": pretrained, **fields}


def timm_folder(folder: Path, architecture: str, *, binary: bool = False, **fields: Any) -> Path:
    """A model of timm, its scores apart; arguments as of ``timm_config``."""
    import timm

    config = timm_config(architecture, **fields)
    arguments = {"num_classes": config["num_classes"], **config.get("model_args", {})}
    torch.manual_seed(0)
    model = timm.create_model(architecture, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * 0.6 / parameter[0].numel() ** 0.5)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if binary:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        save_file(model.state_dict(), folder / "model.safetensors")
    return folder

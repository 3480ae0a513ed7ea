"""A checkpoint whose tensors lie in memory: those of a PyTorch module, where they are, without a copy on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mlxport.errors import UnsupportedError
from mlxport.source.torch_file import DTYPES
from mlxport.types import Checkpoint, TensorRef

__all__ = ["content_hash", "held_checkpoint"]

_NOWHERE = Path(os.devnull)  # no file is under it, so nothing beside the tensors is found
_NARROW = {"complex128": "complex64"}  # safetensors has no wider one, nor has MLX


def held_checkpoint(state: Mapping[str, torch.Tensor], config: Mapping[str, Any], module: str) -> Checkpoint:
    """The tensors of a module as a checkpoint; the bytes are the module's own, except where they have to be moved.

    Args:
        state: Tensors by name.
        config: What stands for its config.json.
        module: The class of the module.

    Raises:
        UnsupportedError: A dtype that safetensors does not have.
    """
    tensors = {name: _held(name, tensor, module) for name, tensor in state.items()}
    return Checkpoint(_NOWHERE, dict(config), tensors, (), module=module)


def _held(name: str, tensor: torch.Tensor, module: str) -> TensorRef:
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind in _NARROW:
        tensor, kind = tensor.to(getattr(torch, _NARROW[kind])), _NARROW[kind]
    if kind not in DTYPES:
        raise UnsupportedError(
            f"{module}: the tensor {name} has dtype {kind}, which safetensors does not have",
            hint="cast it to float32 before the module is ported",
        )
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    held = plain.reshape(-1).view(torch.uint8).numpy()
    return TensorRef(name, DTYPES[kind], tuple(tensor.shape), _NOWHERE, 0, held=held)


def content_hash(checkpoint: Checkpoint) -> str:
    """What tells tensors in memory from others of the same names and shapes."""
    digest = hashlib.sha256()
    for ref in checkpoint.tensors.values():
        assert ref.held is not None
        digest.update(repr((ref.name, ref.dtype, ref.shape)).encode())
        digest.update(ref.held.data)
    return f"sha256:{digest.hexdigest()}"

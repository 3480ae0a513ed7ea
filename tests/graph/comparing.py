"""Modules with random weights, and their ports compared with them."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as mnn
import torch
from torch import nn
from torch.utils import _pytree as pytree

from mlxport.graph.write.port_weights import from_torch, to_mlx


def randomised(module: nn.Module) -> nn.Module:
    """The module in eval mode, every weight and buffer random: the initial ones hide what is dropped."""
    torch.manual_seed(0)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor) * 0.3
    return module.eval()


def compared(module: nn.Module, ported: mnn.Module, args=(), kwargs=None, limit: float = 1e-4):
    """The port's result, found equal to the original's in structure and values."""
    kwargs = kwargs or {}
    with torch.no_grad():
        wanted = module(*pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, args), **kwargs)
    got = ported(*to_mlx(args), **to_mlx(kwargs))
    ours, theirs = pytree.tree_flatten(got), pytree.tree_flatten(wanted)
    for a, b in zip(ours[0], theirs[0], strict=True):
        if isinstance(b, torch.Tensor):
            b = from_torch(b)
            assert a.shape == b.shape and a.dtype == b.dtype
            scale = max(float(mx.abs(b).max()), 1e-6) if b.size else 1.0
            assert b.size == 0 or float(mx.abs(a - b).max()) <= limit * scale
        else:
            assert a == b
    return got


class LinearPair(nn.Module):
    """Two linear layers for a forward to call."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

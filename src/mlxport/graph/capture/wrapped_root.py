"""Capture a module from inside of another one: the members of a root that torch.export hides."""

from __future__ import annotations

from typing import Any

import torch

from mlxport.graph.capture.captured import Captured

__all__ = ["Inside", "bring_out", "hides_members"]


class Inside(torch.nn.Module):  # type: ignore[misc]
    """Keeps a module away from the root, where torch.export does not find members of some names."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.training = inner.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module that is inside."""
        return self.inner(*args, **kwargs)


def hides_members(module: torch.nn.Module) -> bool:
    """Whether the module has members that an exported module hides behind its own, as ``code`` and ``graph``."""
    own = {*dir(torch.fx.GraphModule), "meta", "_guards_fn"}.difference(dir(torch.nn.Module))
    return not own.isdisjoint([*module._modules, *module._parameters, *module._buffers])


def bring_out(captured: Captured) -> None:
    """Name everything as seen from the module that was inside."""

    def name(full: str) -> str:
        return full.removeprefix("inner").removeprefix(".")

    captured.weights = {node: name(full) for node, full in captured.weights.items()}
    captured.state = {name(full): tensor for full, tensor in captured.state.items()}
    captured.trainable = frozenset(map(name, captured.trainable))
    captured.mutations = [(name(what) if isinstance(what, str) else what, node) for what, node in captured.mutations]
    captured.aliases = {name(full): tuple(map(name, names)) for full, names in captured.aliases.items()}
    captured.modules = {name(path): module for path, module in captured.modules.items() if path}
    for node in captured.graph.nodes:
        if "store" in node.meta and isinstance(node.meta["store"], str):
            node.meta["store"] = name(node.meta["store"])
        stack = node.meta.get("nn_module_stack") or {}
        node.meta["nn_module_stack"] = {key: (name(path), kind) for key, (path, kind) in stack.items() if path}

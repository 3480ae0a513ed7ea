"""``mlx.nn`` layers of a port, and how their parameters are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Graph, Node
from torch.fx.node import map_arg

__all__ = ["DEFAULTS", "Fold", "LayerSpec", "Match", "Weight", "layer", "layer_itself"]


@dataclass(frozen=True)
class Weight:
    """How one parameter of the port is made from tensors of the module.

    Attributes:
        sources: Names of the module's tensors (or of folded constants).
        op: ``""`` as it is; ``"move"`` axis ``args[0]`` to ``args[1]``; ``"add"`` of two; ``"tail"``: the last
            ``args[0]`` rows; ``"grouped"``: a transposed convolution's with ``args[0]`` groups; ``"gru_bias"``;
            ``"heads"``: rows ``args[1]`` to ``args[2]`` of each of ``args[0]`` heads, turned where ``args[3]`` is 1.
        args: Integers of ``op``.
    """

    sources: tuple[str, ...]
    op: str = ""
    args: tuple[int, ...] = ()


@dataclass(frozen=True)
class Fold:
    """A constant expression: names of the tensors that it is computed from, and the graph that computes it."""

    sources: tuple[str, ...]
    graph: Graph

    def spelled(self) -> list[Any]:
        """What is computed, the same for the same expression: tensors by their names, what is computed by its place."""
        tensors = iter(self.sources)
        known: dict[Node, str] = {}
        lines: list[Any] = []
        for node in self.graph.nodes:
            if node.op == "placeholder":
                known[node] = next(tensors)
                continue
            known[node] = f"%{len(lines)}"
            lines.append((str(node.target), repr(map_arg((node.args, node.kwargs), known.__getitem__))))
        return lines


@dataclass(frozen=True)
class LayerSpec:
    """One ``mlx.nn`` layer.

    Attributes:
        path: Where the module has it; the layer's parameters are ``path.weight`` and so on.
        constructor: ``nn.Linear`` …, or a class of ``lower.helpers``.
        args: Arguments of the constructor: name to value; ``positional`` of them are written without their names.
        weights: Name within the layer to how it is made.
        channels_last: Whether the layer works with its channels in the last axis.
        method: What of it is called; ``""`` for the layer itself.
        result: ``""``: one array; ``lstm``, ``gru``: see ``rewrite.sharing``.
        options: Keyword arguments of each call.
    """

    path: str
    constructor: str
    args: Mapping[str, Any]
    positional: int = 2
    weights: Mapping[str, Weight] = field(default_factory=dict)
    channels_last: bool = False
    method: str = ""
    result: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


# Arguments of layers that are not written because they say what is the default.
DEFAULTS: dict[str, Any] = {
    "bias": True, "affine": True, "stride": 1, "padding": 0, "dilation": 1, "groups": 1, "output_padding": 0,
    "eps": 1e-5, "pytorch_compatible": False,
}  # fmt: skip


def layer(*args: Any) -> Any:
    """The target of a node that is a layer; ``node.meta["layer"]`` says which."""
    raise NotImplementedError


def layer_itself() -> Any:
    """The target of a node that is a layer and no call of it: an op uses it in more than one way."""
    raise NotImplementedError


@dataclass
class Match:
    """An op that a layer computes, and the inputs that the layer takes."""

    node: Node
    spec: LayerSpec
    inputs: tuple[Any, ...]

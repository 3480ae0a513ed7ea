"""Recognise layers: an op on a module's own parameters is what an ``mlx.nn`` layer computes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.origin import module_path
from mlxport.graph.lower.fused_ops import gather_mm
from mlxport.graph.lower.helpers.conv import GroupedConvTranspose
from mlxport.graph.lower.helpers.experts import SwitchLinear
from mlxport.graph.lower.layer_specs import DEFAULTS, LayerSpec, Match, Weight
from mlxport.graph.lower.registry import bind, helper
from mlxport.graph.rewrite.graph_queries import is_float, kind, ndim, swaps_matrix

__all__ = ["recognise"]

for _layer in (GroupedConvTranspose, SwitchLinear):
    helper(_layer)


class _LayerFinder:
    """Recognises layers in one captured graph."""

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.weights = captured.weights
        self.running = ""

    def names(self, **nodes: Any) -> tuple[str, dict[str, str]] | None:
        """The module path of weights, and argument name to full name; None if they are not one module's own.

        Weights that are tied have several: the path is that of the module which runs, if it is one of them.
        """
        found: dict[str, str] = {}
        paths: list[str] | None = None
        for name, node in nodes.items():
            if node is None:
                continue
            if not isinstance(node, Node) or node not in self.weights:
                return None
            full = found[name] = self.weights[node]
            owners = [p for p, _, last in (a.rpartition(".") for a in self.aliases(full)) if last == name]
            paths = owners if paths is None else [path for path in paths if path in owners]
        if not paths:
            return None
        return (self.running if self.running in paths else paths[0]), found

    def aliases(self, full: str) -> tuple[str, ...]:
        """All names of a tensor."""
        return self.captured.aliases.get(full, (full,))

    def linear(self, node: Node, input: Node, weight: Node, bias: Node | None) -> Match | None:
        stored = weight.args[0] if kind(weight) == "t" else weight  # (in, out) in some models
        owned = self.names(weight=stored, bias=bias)
        owned = owned if owned and owned[0] else self.bare(stored, bias)
        if owned is None or weight.meta["val"].ndim != 2:
            return None
        outputs, inputs = weight.meta["val"].shape
        path, names = owned
        weights = _plain(names)
        if stored is not weight:
            weights["weight"] = Weight((names["weight"],), "move", (0, 1))
        args = _given(input_dims=inputs, output_dims=outputs, bias=bias is not None)
        return Match(node, LayerSpec(path, "nn.Linear", args, 2, weights), (input,))

    def bare(self, weight: Any, bias: Any) -> tuple[str, dict[str, str]] | None:
        """A place for a layer of a matrix and a vector that are parameters with names of their own."""
        if weight not in self.weights or (bias is not None and bias not in self.weights):
            return None
        names = {"weight": self.weights[weight]} | ({} if bias is None else {"bias": self.weights[bias]})
        parent, _, name = names["weight"].rpartition(".")
        short = re.sub(r"_?weight$", "", name) or "linear"
        path = f"{parent}.{short}" if parent else short
        taken = set(self.captured.modules) | (set(self.captured.state) - set(names.values()))
        alone = len(self.captured.aliases.get(names["weight"], ())) < 2
        ours = all(full.rpartition(".")[0] == parent for full in names.values())
        vector = bias is None or bias.meta["val"].ndim == 1
        free = path not in taken and not short.isdigit()
        return (path, names) if free and alone and ours and vector else None

    def experts(
        self, node: Node, x: Node, weight: Node, experts: Node, ascending: bool | Node, bias: Any = None
    ) -> Match | None:
        turned = swaps_matrix(weight)
        stored = weight.args[0] if turned else weight  # (expert, out, in), or (expert, in, out)
        owned = self.names(weight=stored, bias=bias)
        owned = owned if owned and owned[0] else None if bias is not None else self.bare(stored, None)
        if owned is None:
            return None
        path, names = owned
        count, inputs, outputs = weight.meta["val"].shape
        made = Weight((names["weight"],)) if turned else Weight((names["weight"],), "move", (1, 2))
        args = _given(input_dims=inputs, output_dims=outputs, num_experts=count, bias=bias is not None)
        options = {"sorted_indices": True} if ascending is True else {}
        spec = LayerSpec(path, SwitchLinear.__name__, args, 3, {**_plain(names), "weight": made}, options=options)
        return Match(node, spec, (x, experts, *([ascending] if isinstance(ascending, Node) else [])))

    def embedding(
        self, node: Node, weight: Node, indices: Node, padding_idx: int, scale_grad_by_freq: bool, sparse: bool
    ) -> Match | None:
        owned = self.names(weight=weight)
        if owned is None:
            return None
        path, names = owned
        count, dims = weight.meta["val"].shape
        spec = LayerSpec(
            path, "nn.Embedding", _given(num_embeddings=count, dims=dims), 2, {"weight": Weight((names["weight"],))}
        )
        return Match(node, spec, (indices,))

    def layer_norm(
        self,
        node: Node,
        input: Node,
        normalized_shape: list[int],
        weight: Node | None,
        bias: Node | None,
        eps: float,
        cudnn_enable: bool,
    ) -> Match | None:
        owned = self.names(weight=weight, bias=bias)
        if owned is None or weight is None or len(normalized_shape) != 1:
            return None
        path, names = owned
        args = _given(dims=normalized_shape[0], eps=eps, bias=bias is not None)
        return Match(node, LayerSpec(path, "nn.LayerNorm", args, 1, _plain(names)), (input,))

    def rms_norm(
        self, node: Node, input: Node, normalized_shape: list[int], weight: Node | None, eps: float | None
    ) -> Match | None:
        owned = self.names(weight=weight)
        if owned is None or len(normalized_shape) != 1:
            return None
        path, names = owned
        if eps is None:
            eps = torch.finfo(input.meta["val"].dtype).eps
        return Match(
            node, LayerSpec(path, "nn.RMSNorm", _given(dims=normalized_shape[0], eps=eps), 1, _plain(names)), (input,)
        )

    def group_norm(
        self,
        node: Node,
        input: Node,
        num_groups: int,
        weight: Node | None,
        bias: Node | None,
        eps: float,
        cudnn_enabled: bool,
    ) -> Match | None:
        owned = self.names(weight=weight, bias=bias)
        if owned is None or weight is None or bias is None:
            return None
        path, names = owned
        args = _given(num_groups=num_groups, dims=weight.meta["val"].shape[0], eps=eps, pytorch_compatible=True)
        return Match(node, LayerSpec(path, "nn.GroupNorm", args, 2, _plain(names), channels_last=True), (input,))

    def batch_norm(
        self,
        node: Node,
        input: Node,
        weight: Node | None,
        bias: Node | None,
        running_mean: Node | None,
        running_var: Node | None,
        training: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,
    ) -> Match | None:
        owned = self.names(weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
        if owned is None or training or running_mean is None or (weight is None) != (bias is None):
            return None
        if input.meta["val"].ndim > 4:
            return None  # nn.BatchNorm takes up to four axes
        path, names = owned
        args = _given(num_features=running_mean.meta["val"].shape[0], eps=eps, affine=weight is not None)
        spec = LayerSpec(path, "nn.BatchNorm", args, 1, _plain(names), channels_last=input.meta["val"].ndim > 2)
        return Match(node, spec, (input,))

    def convolution(
        self,
        node: Node,
        input: Node,
        weight: Node,
        bias: Node | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
    ) -> Match | None:
        owned = self.names(weight=weight, bias=bias)
        shape = weight.meta["val"].shape
        rank = len(shape) - 2
        if owned is None or (rank == 3 and groups > 1) or not _batched(input, weight):
            return None
        sizes = _sizes(padding, rank, shape, dilation, stride)
        if sizes is None:
            return None
        path, names = owned
        args = _given(
            in_channels=shape[1] * groups,
            out_channels=shape[0],
            kernel_size=_one(shape[2:], rank),
            stride=_one(stride, rank),
            padding=_one(sizes, rank),
            dilation=_one(dilation, rank),
            groups=groups,
            bias=bias is not None,
        )
        weights = {**_plain(names), "weight": Weight((names["weight"],), "move", (1, -1))}
        return Match(node, LayerSpec(path, f"nn.Conv{rank}d", args, 3, weights, channels_last=True), (input,))

    def conv_transpose(
        self,
        node: Node,
        input: Node,
        weight: Node,
        bias: Node | None,
        stride: Any,
        padding: Any,
        output_padding: Any,
        groups: int,
        dilation: Any,
    ) -> Match | None:
        owned = self.names(weight=weight, bias=bias)
        shape = weight.meta["val"].shape
        rank = len(shape) - 2
        if owned is None or (rank == 3 and groups > 1) or not _batched(input, weight):
            return None
        axes = zip(_all(padding, rank), _all(dilation, rank), shape[2:], strict=True)
        if any(outer > step * (size - 1) for outer, step, size in axes):
            return None  # MLX would pad by less than nothing
        path, names = owned
        grouped = {"groups": groups} if groups > 1 else {}  # nn.ConvTranspose has none
        args = _given(
            in_channels=shape[0],
            out_channels=shape[1] * groups,
            kernel_size=tuple(shape[2:]) if grouped else _one(shape[2:], rank),
            **grouped,
            stride=_one(stride, rank),
            padding=_one(padding, rank),
            dilation=_one(dilation, rank),
            output_padding=_one(output_padding, rank),
            bias=bias is not None,
        )
        made = Weight((names["weight"],), *(("grouped", (groups,)) if grouped else ("move", (0, -1))))
        constructor = GroupedConvTranspose.__name__ if grouped else f"nn.ConvTranspose{rank}d"
        spec = LayerSpec(path, constructor, args, 3, {**_plain(names), "weight": made}, channels_last=True)
        return Match(node, spec, (input,))

    def recurrent(
        self,
        node: Node,
        kind: str,
        input: Node,
        hx: Any,
        params: list[Node],
        has_biases: bool,
        num_layers: int,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Match | None:
        if num_layers != 1 or bidirectional or input.meta["val"].ndim != 3:
            return None
        if any(param not in self.weights for param in params):
            return None
        names = [self.weights[param] for param in params]
        path = names[0].rpartition(".")[0]
        wanted = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"][: 4 if has_biases else 2]
        if names != [f"{path}.{name}" if path else name for name in wanted]:
            return None
        shape = params[0].meta["val"].shape
        hidden = params[1].meta["val"].shape[1]
        weights = {"Wx": Weight((names[0],)), "Wh": Weight((names[1],))}
        if has_biases and kind == "LSTM":
            weights["bias"] = Weight((names[2], names[3]), "add")
        elif has_biases:
            weights["b"] = Weight((names[2], names[3]), "gru_bias", (2 * hidden,))
            weights["bhn"] = Weight((names[3],), "tail", (hidden,))
        args = _given(input_size=shape[1], hidden_size=hidden, bias=has_biases)
        states = hx if isinstance(hx, list | tuple) else [hx]
        inputs = (input, *states)
        spec = LayerSpec(
            path, f"nn.{kind}", args, 2, weights, result=f"{kind.lower()}{'_batch_first' if batch_first else ''}"
        )
        return Match(node, spec, inputs)


def _batched(input: Node, weight: Node) -> bool:
    """Whether a convolution is what MLX's layers compute: of floats, with an axis for the batch."""
    return ndim(input) == ndim(weight) and is_float(input)


def _given(**args: Any) -> dict[str, Any]:
    """Constructor arguments without those that are the default, but for what equal layers may differ in."""
    kept = ("stride", "padding", "dilation", "groups", "output_padding")
    return {name: value for name, value in args.items() if name in kept or DEFAULTS.get(name, ()) != value}


def _plain(names: Mapping[str, str]) -> dict[str, Weight]:
    return {key: Weight((full,)) for key, full in names.items()}


def _one(sizes: Any, rank: int) -> Any:
    """A size per axis as one int where all are equal, else a tuple."""
    sizes = (sizes,) if isinstance(sizes, int) else tuple(int(size) for size in sizes)
    if len(sizes) == 1:
        sizes *= rank
    return sizes[0] if len(set(sizes)) == 1 else sizes


def _sizes(padding: Any, rank: int, shape: Any, dilation: Any, stride: Any) -> Any:
    """Padding as numbers: ``same`` in numbers where it is even on both sides; None where it is not."""
    if not isinstance(padding, str):
        return padding
    if padding == "valid":
        return [0] * rank
    spread = [d * (k - 1) for d, k in zip(_all(dilation, rank), shape[2:], strict=True)]
    return [total // 2 for total in spread] if all(total % 2 == 0 for total in spread) else None


def _all(sizes: Any, rank: int) -> list[int]:
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    return sizes * rank if len(sizes) == 1 else sizes


def _matcher(finder: _LayerFinder, node: Node) -> Callable[[], Match | None] | None:
    """The recogniser for a node's op, with its arguments bound."""
    if node.target is gather_mm:
        return lambda: finder.experts(node, *node.args)
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    key = node.target._schema.name.removeprefix("aten::")
    overloaded = node.target._overloadname
    table: dict[str, Callable[..., Match | None]] = {
        "linear": finder.linear,
        "embedding": finder.embedding,
        "layer_norm": finder.layer_norm,
        "rms_norm": finder.rms_norm,
        "group_norm": finder.group_norm,
        "batch_norm": finder.batch_norm,
    }
    if str(node.target).partition(".")[0] != "aten":
        return None
    if key == "_native_batch_norm_legit_no_training":
        users = list(node.users)
        if any(user.args[1] != 0 for user in users):
            return None
        bound = bind(node.target, node.args, dict(node.kwargs))
        return lambda: finder.batch_norm(node, training=False, cudnn_enabled=False, **bound)
    if key in table:
        function = table[key]
    elif key in ("conv1d", "conv2d", "conv3d"):
        function = finder.convolution
    elif key in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
        function = finder.conv_transpose
    elif key in ("lstm", "gru") and overloaded == "input":

        def function(node: Node, **bound: Any) -> Match | None:
            bound.pop("dropout")
            return finder.recurrent(node, key.upper(), **bound)
    else:
        return None
    bound = bind(node.target, node.args, dict(node.kwargs))
    return lambda: function(node, **bound)


def recognise(captured: Captured) -> list[Match]:
    """Every op that a layer with the module's own weights computes."""
    finder = _LayerFinder(captured)
    found = []
    for node in captured.graph.nodes:
        match_node = _matcher(finder, node) if node.op == "call_function" else None
        if match_node is None:
            continue
        finder.running = module_path(node)
        match = match_node()
        if match is not None and match.spec.path:  # the root itself may be the module
            found.append(match)
    return found

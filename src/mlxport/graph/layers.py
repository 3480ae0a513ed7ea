"""Recognise layers: an op on a module's own parameters becomes the ``mlx.nn`` layer that holds them."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.capture import Captured
from mlxport.graph.origin import module_path
from mlxport.graph.registry import bind

__all__ = ["LayerSpec", "Weight", "find_layers", "layer"]


@dataclass(frozen=True)
class Weight:
    """How one parameter of the port is made from tensors of the module.

    Attributes:
        sources: Names of the module's tensors (or of folded constants).
        op: ``""`` as it is; ``"move"`` axis ``args[0]`` to ``args[1]``; ``"transpose"`` of a matrix; ``"add"`` of two;
            ``"reshape"`` to ``args``; ``"conv_transpose"`` with ``args[0]`` groups; ``"fold"``: see ``fold.Fold``;
            ``"head"``/``"tail"``: the first or last ``args[0]`` rows of the sum or of the last source.
        args: Integers of ``op``.
    """

    sources: tuple[str, ...]
    op: str = ""
    args: tuple[int, ...] = ()


@dataclass(frozen=True)
class LayerSpec:
    """One ``mlx.nn`` layer.

    Attributes:
        path: Where the module has it; the layer's parameters are ``path.weight`` and so on.
        constructor: ``nn.Linear`` …
        args: Arguments of the constructor: name to value; ``positional`` of them are written without their names.
        weights: Name within the layer to how it is made.
        channels_last: Whether the layer works with its channels in the last axis.
        result: ``""``: one array; ``lstm``, ``gru``: see ``lower``.
    """

    path: str
    constructor: str
    args: Mapping[str, Any]
    positional: int = 2
    weights: Mapping[str, Weight] = field(default_factory=dict)
    channels_last: bool = False
    method: str = ""
    result: str = ""


def layer(*args: Any) -> Any:
    """The target of a node that is a layer; ``node.meta["layer"]`` says which."""
    raise NotImplementedError


@dataclass
class _Match:
    node: Node
    spec: LayerSpec
    inputs: tuple[Any, ...]


class _Finder:
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

    def linear(self, node: Node, input: Node, weight: Node, bias: Node | None) -> _Match | None:
        stored = weight.args[0] if str(weight.target) == "aten.t.default" else weight  # (in, out) in some models
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
        return _Match(node, LayerSpec(path, "nn.Linear", args, 2, weights), (input,))

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

    def embedding(
        self, node: Node, weight: Node, indices: Node, padding_idx: int, scale_grad_by_freq: bool, sparse: bool
    ) -> _Match | None:
        owned = self.names(weight=weight)
        if owned is None:
            return None
        path, names = owned
        count, dims = weight.meta["val"].shape
        spec = LayerSpec(
            path, "nn.Embedding", _given(num_embeddings=count, dims=dims), 2, {"weight": Weight((names["weight"],))}
        )
        return _Match(node, spec, (indices,))

    def layer_norm(
        self,
        node: Node,
        input: Node,
        normalized_shape: list[int],
        weight: Node | None,
        bias: Node | None,
        eps: float,
        cudnn_enable: bool,
    ) -> _Match | None:
        owned = self.names(weight=weight, bias=bias)
        if owned is None or weight is None or len(normalized_shape) != 1:
            return None
        path, names = owned
        args = _given(dims=normalized_shape[0], eps=eps, bias=bias is not None)
        return _Match(node, LayerSpec(path, "nn.LayerNorm", args, 1, _plain(names)), (input,))

    def rms_norm(
        self, node: Node, input: Node, normalized_shape: list[int], weight: Node | None, eps: float | None
    ) -> _Match | None:
        owned = self.names(weight=weight)
        if owned is None or len(normalized_shape) != 1:
            return None
        path, names = owned
        if eps is None:
            eps = torch.finfo(input.meta["val"].dtype).eps
        return _Match(
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
    ) -> _Match | None:
        owned = self.names(weight=weight, bias=bias)
        if owned is None or weight is None or bias is None:
            return None
        path, names = owned
        args = _given(num_groups=num_groups, dims=weight.meta["val"].shape[0], eps=eps, pytorch_compatible=True)
        return _Match(node, LayerSpec(path, "nn.GroupNorm", args, 2, _plain(names), channels_last=True), (input,))

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
    ) -> _Match | None:
        owned = self.names(weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
        if owned is None or training or running_mean is None or (weight is None) != (bias is None):
            return None
        if input.meta["val"].ndim > 4:
            return None  # nn.BatchNorm takes up to four axes
        path, names = owned
        args = _given(num_features=running_mean.meta["val"].shape[0], eps=eps, affine=weight is not None)
        spec = LayerSpec(path, "nn.BatchNorm", args, 1, _plain(names), channels_last=input.meta["val"].ndim > 2)
        return _Match(node, spec, (input,))

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
    ) -> _Match | None:
        owned = self.names(weight=weight, bias=bias)
        shape = weight.meta["val"].shape
        rank = len(shape) - 2
        if owned is None or (rank == 3 and groups > 1) or input.meta["val"].ndim != len(shape):
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
        return _Match(node, LayerSpec(path, f"nn.Conv{rank}d", args, 3, weights, channels_last=True), (input,))

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
    ) -> _Match | None:
        owned = self.names(weight=weight, bias=bias)
        shape = weight.meta["val"].shape
        rank = len(shape) - 2
        if owned is None or groups > 1 or input.meta["val"].ndim != len(shape):
            return None  # nn.ConvTranspose has no groups
        path, names = owned
        args = _given(
            in_channels=shape[0],
            out_channels=shape[1],
            kernel_size=_one(shape[2:], rank),
            stride=_one(stride, rank),
            padding=_one(padding, rank),
            dilation=_one(dilation, rank),
            output_padding=_one(output_padding, rank),
            bias=bias is not None,
        )
        weights = {**_plain(names), "weight": Weight((names["weight"],), "move", (0, -1))}
        return _Match(node, LayerSpec(path, f"nn.ConvTranspose{rank}d", args, 3, weights, channels_last=True), (input,))

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
    ) -> _Match | None:
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
        return _Match(node, spec, inputs)


DEFAULTS: dict[str, Any] = {
    "bias": True, "affine": True, "stride": 1, "padding": 0, "dilation": 1, "groups": 1, "output_padding": 0,
    "eps": 1e-5, "pytorch_compatible": False,
}  # fmt: skip


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


def _matcher(finder: _Finder, node: Node) -> Callable[[], _Match | None] | None:
    """The recogniser for a node's op, with its arguments bound."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    key = node.target._schema.name.removeprefix("aten::")
    overloaded = node.target._overloadname
    table: dict[str, Callable[..., _Match | None]] = {
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

        def function(node: Node, **bound: Any) -> _Match | None:
            bound.pop("dropout")
            return finder.recurrent(node, key.upper(), **bound)
    else:
        return None
    bound = bind(node.target, node.args, dict(node.kwargs))
    return lambda: function(node, **bound)


def find_layers(captured: Captured) -> dict[str, LayerSpec]:
    """Turn every op that works on a module's own parameters into a layer node; path to layer.

    An op stays what it is where its weights have another use that the layer's form of them would not serve. A linear
    layer that shares its weight with an embedding becomes ``embedding.as_linear``.
    """
    finder = _Finder(captured)
    matches: list[_Match] = []
    for node in captured.graph.nodes:
        matcher = _matcher(finder, node) if node.op == "call_function" else None
        finder.running = module_path(node) if matcher else ""
        match = matcher() if matcher else None
        if match is not None and match.spec.path:  # the root itself may be the module
            matches.append(match)
    by_name = {name: node for node, name in captured.weights.items()}
    below = _weights_below(captured)
    layers: dict[str, LayerSpec] = {}
    replaced: dict[Node, Node] = {}
    for found in _clusters(matches):
        home = _home(found)
        calls = [_called(match, home) for match in found]
        if any(call is None for call in calls) or _used_elsewhere(found, by_name):
            continue
        if below.get(home.path, set()) - {source for weight in home.weights.values() for source in weight.sources}:
            continue  # it has more weights than the layer: it is a class of its own
        if any(name != "parametrizations" for name, _ in _children(captured, home.path)):
            continue
        layers[home.path] = home
        for match, call in zip(found, calls, strict=True):
            assert call is not None
            inputs = tuple(replaced.get(item, item) for item in match.inputs)
            if home.result:
                replaced.update(_rewrite_recurrent(captured, match, call, inputs))
            else:
                replaced.update(_rewrite(captured, match, call, inputs))
    return layers


def _clusters(matches: list[_Match]) -> list[list[_Match]]:
    """Matches that share a weight, together."""
    found: list[tuple[set[str], list[_Match]]] = []
    by_source: dict[str, int] = {}
    for match in matches:
        sources = {source for weight in match.spec.weights.values() for source in weight.sources} | {match.spec.path}
        old = sorted({by_source[source] for source in sources if source in by_source})
        group = found[old[0]] if old else (set(), [])
        if not old:
            found.append(group)
        index = old[0] if old else len(found) - 1
        for other in old[1:]:
            group[0].update(found[other][0])
            group[1].extend(found[other][1])
            found[other] = (set(), [])
        group[0].update(sources)
        group[1].append(match)
        by_source.update(dict.fromkeys(group[0], index))
    return [group for _, group in found if group]


def _home(found: list[_Match]) -> LayerSpec:
    """The layer that holds the weights which all matches share: an embedding, or where they have their first name."""
    embeddings = [match.spec for match in found if match.spec.constructor == "nn.Embedding"]
    specs = embeddings or [match.spec for match in found]
    canonical = [spec for spec in specs if spec.weights and _first_source(spec).rpartition(".")[0] == spec.path]
    return (canonical or specs)[0]


def _first_source(spec: LayerSpec) -> str:
    return next(iter(spec.weights.values())).sources[0]


def _called(match: _Match, home: LayerSpec) -> LayerSpec | None:
    """How the home layer does what ``match`` does, or None."""
    spec = match.spec
    if replace(spec, path=home.path) == home:
        return home
    tied = spec.constructor == "nn.Linear" and home.constructor == "nn.Embedding"
    return replace(home, method="as_linear") if tied and spec.weights["weight"] == home.weights["weight"] else None


def _rewrite(captured: Captured, match: _Match, call: LayerSpec, inputs: tuple[Any, ...]) -> dict[Node, Node]:
    """Make a layer node of the op; gives the nodes that went with their replacements."""
    graph, node = captured.graph, match.node
    replaced: dict[Node, Node] = {}
    if isinstance(node.meta["val"], tuple | list):  # the statistics are not used
        node.meta["val"] = node.meta["val"][0]
        for user in list(node.users):
            replaced[user] = node
            user.replace_all_uses_with(node)
            graph.erase_node(user)
    bias = node.args[2] if call.method and len(node.args) > 2 else node.kwargs.get("bias") if call.method else None
    node.target = layer
    node.args, node.kwargs = inputs, {}
    node.meta["layer"] = call
    if bias is not None:
        with graph.inserting_after(node):
            total = graph.call_function(torch.ops.aten.add.Tensor, (node, bias))
        total.meta = {key: value for key, value in node.meta.items() if key != "layer"}
        node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
        replaced[node] = total
    return replaced


def _rewrite_recurrent(captured: Captured, match: _Match, spec: LayerSpec, inputs: tuple[Any, ...]) -> dict[Node, Node]:
    """Torch's (output, last states …) from what ``nn.LSTM`` and ``nn.GRU`` give: the states at every step."""
    graph, node = captured.graph, match.node
    kind, _, batch_first = match.spec.result.partition("_")
    x, *states = inputs
    aten = torch.ops.aten

    def call(target: Any, *args: Any, val: Any) -> Node:
        made = graph.call_function(target, args)
        made.meta = {**node.meta, "val": val}
        return made

    def select(source: Node, axis: int, index: int) -> Node:
        return call(aten.select.int, source, axis, index, val=source.meta["val"].select(axis, index))

    with graph.inserting_before(node):
        if not batch_first:
            x = call(aten.transpose.int, x, 0, 1, val=x.meta["val"].transpose(0, 1))
        given = [] if all(map(_is_zero, states)) else [select(state, 0, 0) for state in states]
        values = node.meta["val"]
        sequence = values[0] if batch_first else values[0].transpose(0, 1)
        made = call(layer, x, *given, val=sequence if kind == "gru" else (sequence, sequence))
        made.meta["layer"] = spec
        parts = [made] if kind == "gru" else [call(operator.getitem, made, i, val=sequence) for i in (0, 1)]
        results = [parts[0] if batch_first else call(aten.transpose.int, parts[0], 0, 1, val=values[0])]
        for part, value in zip(parts, values[1:], strict=True):
            results.append(call(aten.unsqueeze.default, select(part, 1, -1), 0, val=value))
    replaced = {user: results[user.args[1]] for user in node.users}
    for user, result in replaced.items():
        user.replace_all_uses_with(result)
        graph.erase_node(user)
    graph.erase_node(node)
    return replaced


def _is_zero(node: Any) -> bool:
    if not isinstance(node, Node):
        return False
    if str(node.target) in ("aten.zeros.default", "aten.zeros_like.default", "aten.new_zeros.default"):
        return True
    return str(node.target) == "aten.full.default" and node.args[1] == 0


def _used_elsewhere(found: list[_Match], by_name: dict[str, Node]) -> bool:
    """Whether a weight has a use outside of the layer, which its stored (or quantized) form would not serve."""
    nodes = {match.node for match in found}
    sources = {source for match in found for weight in match.spec.weights.values() for source in weight.sources}
    matched = {item for match in found for item in match.node.all_input_nodes}
    turned = {item for item in matched if str(item.target) == "aten.t.default" and nodes.issuperset(item.users)}
    nodes, matched = nodes | turned, matched | {item.args[0] for item in turned}
    return any(
        user not in nodes
        for source in sources
        if source in by_name and by_name[source] in matched and not _plain_bias(by_name[source])
        for user in by_name[source].users
    )


def _children(captured: Captured, path: str) -> list[tuple[str, torch.nn.Module]]:
    module = captured.modules.get(path)
    return list(module.named_children()) if module is not None else []


def _weights_below(captured: Captured) -> dict[str, set[str]]:
    """Path of a module to the weights in use in it and below it, under all their names."""
    below: dict[str, set[str]] = {}
    for node, full in captured.weights.items():
        for name in captured.aliases.get(full, (full,)) if node.users else ():
            while "." in name:
                name = name.rpartition(".")[0]
                below.setdefault(name, set()).add(full)
    return below


def _plain_bias(node: Node) -> bool:
    """Biases are kept as they are in every layer and format."""
    return node.meta["val"].ndim == 1

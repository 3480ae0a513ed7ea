"""The ``sanitize`` of a port: weights under the names and in the layouts that they are published in, made the port's.

It is derived from the traced map of the conversion and proven before it is written: run on the checkpoint's tensors it
computes what the map computes, and what is the port's already passes as it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from mlxport.graph.build import Port
from mlxport.graph.write.emit import format_source
from mlxport.graph.write.execute_source import execute
from mlxport.graph.write.generating import with_method
from mlxport.layouts.generated.weight_expressions import NotSpelled, Spelling
from mlxport.transform import Program, Value, trace

__all__ = ["add_sanitize", "tied_names"]

_MOST_LINES = 40  # that stand in no loop
_LAYER = re.compile(r"((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)\.(\d+)\.(.+)")
_STRING = re.compile(r"f?\"([^\"]*)\"")


@dataclass(frozen=True)
class _Item:
    """One weight: its path, and the expression that makes it of ``weights``."""

    target: str
    text: str


@dataclass(frozen=True)
class _Prefix:
    """What is put before most names of a checkpoint, or taken off all."""

    add: str = ""
    strip: str = ""
    kept: tuple[str, ...] = ()

    def __call__(self, name: str) -> str:
        return name if self.kept and name.startswith(self.kept) else self.add + name.removeprefix(self.strip)

    def line(self) -> list[str]:
        changed = f'f"{self.add}{{name}}"' if self.add else f'name.removeprefix("{self.strip}")'
        if not (self.add or self.strip):
            return []
        if self.kept:
            changed = f"name if name.startswith({self.kept!r}) else {changed}"
        return [f"weights = {{{changed}: array for name, array in weights.items()}}"]


def add_sanitize(port: Port, program: Program, config: Mapping[str, Any], tied: Collection[str]) -> None:
    """Give the source of a port the method, or a note that it has none.

    Args:
        port: Its source is changed.
        program: From checkpoint tensors to its weights; none is quantized.
        config: What ``ModelArgs`` are made of.
        tied: Names of parameters that are others of the model.
    """
    counts = Counter(output.dtype for output in program.outputs.values() if mx.issubdtype(output.dtype, mx.floating))
    main = counts.most_common(1)[0][0]
    try:
        text = sanitize_source(program, tied, main)
        if text:
            source = format_source(with_method(port.source, text))
            namespace: Any = execute(source)
            prove(namespace.Model(namespace.ModelArgs.from_dict(dict(config))).sanitize, program, main)
            port.source = source
    except NotSpelled as reason:
        port.notes.append(f"model.py has no sanitize, so that it loads converted weights only: {reason}")


def tied_names(model: Any) -> set[str]:
    """Names under which parameters of a transformers model are found again, after their first."""
    named = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return set(named) - {name for name, _ in model.named_parameters()}


def sanitize_source(program: Program, tied: Collection[str], main: mx.Dtype) -> str:
    """The method, or nothing where weights are published as the port has them.

    Args:
        program: From checkpoint tensors to the port's weights; none is quantized.
        tied: Names of parameters that are others of the model.
        main: Dtype of most weights.

    Raises:
        NotSpelled: The map is not one that can be written, with the reason.
    """
    prefix = _prefix(program)
    values = _values(program)
    spelled = _SpelledWeights(values, prefix, main)
    items = spelled.items()
    dropped = _dropped(program, tied, prefix)
    popped = [f'weights.pop("{name}", None)' for name in sorted(set(tied) - set(values) - set(spelled.used))]
    changes = [*prefix.line(), *dropped, *_lines(items, values), *spelled.deleted()]
    if not (changes or popped):
        return ""
    witness = (
        [f"if {_witness(items, values, spelled, prefix)}:", "    return weights"] if items or prefix.line() else []
    )
    doc = '"""Weights as transformers saves them, made those of this file; these pass as they are."""'
    body = [doc, *popped, *witness, *changes, "return weights"]
    return "\n".join(["def sanitize(self, weights):", *(f"    {line}" for line in body)])


def prove(method: Any, program: Program, main: mx.Dtype) -> None:
    """Hold ``sanitize`` against the map that it was written from.

    Raises:
        NotSpelled: It makes something else, or changes what is the port's already.
    """
    spelling = Spelling(repr, main)
    made = trace(lambda arrays: dict(method(dict(arrays))), program.refs)
    wanted = {name: spelling(value) for name, value in _values(program).items()}
    if wanted != {name: spelling(value) for name, value in _values(made).items()}:
        raise NotSpelled("names or layouts in it are ones that no short rule tells")
    ours = {name: mx.zeros(output.shape, dtype=output.dtype) for name, output in program.outputs.items()}
    for held in (ours, _packed(ours)):
        if {name: id(array) for name, array in method(dict(held)).items()} != {n: id(a) for n, a in held.items()}:
            raise NotSpelled("its weights cannot be told from converted ones")


def _packed(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Weights with the shapes that quantized ones have."""
    packed = dict(weights)
    for name, array in weights.items():
        if name.endswith(".weight") and array.ndim > 1:
            shape = array.shape[:-1]
            packed[name] = mx.zeros((*shape, max(1, array.shape[-1] // 8)), dtype=mx.uint32)
            packed[name.removesuffix("weight") + "scales"] = mx.zeros((*shape, max(1, array.shape[-1] // 64)))
    return packed


def _values(program: Program) -> dict[str, Value]:
    found = {}
    for name, output in program.outputs.items():
        if output.value is None:
            raise NotSpelled(f"{name} is computed in a way that was not followed")
        found[name] = output.value
    return found


def _leaf(value: Value) -> str | None:
    """The tensor that a value is, but for its dtype."""
    while value.call is not None and value.call.op == "AsType":
        (value,) = value.call.inputs
    return value.leaf.name if value.leaf is not None else None


def _prefix(program: Program) -> _Prefix:
    """How all names differ."""
    pairs = [(name, leaf) for name, value in _values(program).items() if (leaf := _leaf(value)) is not None]
    added = Counter(ours.removesuffix(leaf) for ours, leaf in pairs if ours != leaf and ours.endswith(f".{leaf}"))
    if added and (add := added.most_common(1)[0][0]) and not any(name.startswith(add) for name in program.refs):
        kept = {f"{ours.partition('.')[0]}." for ours, leaf in pairs if ours == leaf}
        return _Prefix(add=add, kept=tuple(sorted(kept)))
    stripped = Counter(leaf.removesuffix(ours) for ours, leaf in pairs if ours != leaf and leaf.endswith(f".{ours}"))
    if stripped and all(name.startswith(strip := stripped.most_common(1)[0][0]) for name in program.refs):
        return _Prefix(strip=strip)
    return _Prefix()


class _SpelledWeights:
    """The weights that are not stored as they are, as statements on ``weights``."""

    def __init__(self, values: Mapping[str, Value], prefix: _Prefix, main: mx.Dtype) -> None:
        self.values, self.main, self.prefix = values, main, prefix
        self.used = Counter(prefix(ref.name) for value in values.values() for ref in value.leaves())
        self.current = ""

    def items(self) -> list[_Item]:
        spelling, found = Spelling(self._source, self.main), []
        for target, value in self.values.items():
            self.current = target
            text = spelling(value)
            if text != f'weights["{target}"]':
                found.append(_Item(target, text))
        self._pop(found)
        return found

    def _pop(self, items: list[_Item]) -> None:
        """Take out what several weights of one layer are made of with the last of them."""
        places: dict[str, list[int]] = {}
        for place, item in enumerate(items):
            for name in _STRING.findall(item.text):
                places.setdefault(name, []).append(place)
        for name, found in places.items():
            layers = {m.group(1, 2) if (m := _LAYER.fullmatch(items[place].target)) else None for place in found}
            if self.used[name] == len(found) > 1 and name not in self.values and len(layers) == 1:
                last = items[found[-1]]
                items[found[-1]] = replace(last, text=last.text.replace(f'weights["{name}"]', f'weights.pop("{name}")'))
                self.used[name] = 1

    def _source(self, name: str) -> str:
        name = self.prefix(name)
        if name in self.values and (name != self.current) and not self._stays(name):
            raise NotSpelled(f"{name} is the name of another weight")
        keep = name in self.values or self.used[name] > 1
        return f'weights["{name}"]' if keep else f'weights.pop("{name}")'

    def _stays(self, name: str) -> bool:
        """Whether the weight of a name is the checkpoint's tensor of that name."""
        leaf = _leaf(self.values[name])
        return leaf is not None and self.prefix(leaf) == name

    def deleted(self) -> list[str]:
        """Statements that take out what more than one weight is made of."""
        names = [name for name, count in self.used.items() if count > 1 and name not in self.values]
        return _lines([_Item("", f'weights.pop("{name}")') for name in names], self.values)


def _dropped(program: Program, tied: Collection[str], prefix: _Prefix) -> list[str]:
    """The statement that leaves out tensors which the port does not have."""
    unused = [name for name in map(prefix, program.unused()) if name not in tied]
    if not unused:
        return []
    used = {prefix(name) for name in program.refs} - set(unused) | set(program.outputs)
    parts = sorted({_telling(name, used) for name in unused})
    inside = f'"{parts[0]}" not in name' if len(parts) == 1 else f"not any(part in name for part in {tuple(parts)!r})"
    return [f"weights = {{name: array for name, array in weights.items() if {inside}}}"]


def _telling(name: str, used: Collection[str]) -> str:
    """The shortest part of a name, from its beginning or after an index, that is in none of those used."""
    layer = _LAYER.fullmatch(name)
    tails = [f".{layer[3]}"] if layer else []
    for text in [*tails, name]:
        parts = text.split(".")
        for count in range(1 + (not parts[0]), len(parts) + 1):
            part = ".".join(parts[:count]) + ("." if count < len(parts) else "")
            if not any(part in other for other in used):
                return part
    raise NotSpelled(f"{name} is not told from others")


def _witness(items: Sequence[_Item], values: Mapping[str, Value], spelled: _SpelledWeights, prefix: _Prefix) -> str:
    """What is so of converted weights alone."""
    original = {name: None for name in spelled.used}
    before = {ref.name for value in values.values() for ref in value.leaves()}
    for name in [item.target for item in items] + list(values):
        if name not in before and (name not in original or prefix.line()):
            return f'"{name}" in weights'
    for item in items:
        leaves = values[item.target].leaves()
        if len(leaves) == 1 and leaves[0].shape != values[item.target].shape:
            return f"{item.text}.shape != {_attribute(item.target)}.shape"
    raise NotSpelled("its weights cannot be told from converted ones")


def _attribute(path: str) -> str:
    return "self." + re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", path)


def _lines(items: Sequence[_Item], values: Mapping[str, Value]) -> list[str]:
    """Assignments; those that are the same for many layers in one loop over them."""
    straight: list[str] = []
    loops: dict[str, dict[tuple[str, str], list[int]]] = {}
    for item in items:
        found = _LAYER.fullmatch(item.target or _STRING.findall(item.text)[0])
        if found is None:
            straight.append(_assigned(f'"{item.target}"' if item.target else "", item.text))
            continue
        target = f'f"{found[1]}.{{i}}.{found[3]}"' if item.target else ""
        template = target, _layered(item.text, found[1], int(found[2]))
        loops.setdefault(found[1], {}).setdefault(template, []).append(int(found[2]))
    lines = straight
    for layers, templates in loops.items():
        depth = 1 + max(int(m[2]) for name in values if (m := _LAYER.fullmatch(name)) and m[1] == layers)
        lines = [*lines, *_loop(layers, templates, depth)]
    if len(lines) > _MOST_LINES:
        raise NotSpelled("its weights lie otherwise in each layer")
    return lines


def _assigned(target: str, text: str) -> str:
    return f"weights[{target}] = {text}" if target else text


def _layered(text: str, layers: str, index: int) -> str:
    """``text`` with the number of the layer as a variable."""

    def string(match: re.Match[str]) -> str:
        name = re.sub(rf"(?<=\.){index}(?=\.)", "{i}", match[1], count=1)
        return f'f"{name}"' if "{" in name else match[0]

    return _STRING.sub(string, text)


def _loop(layers: str, templates: Mapping[tuple[str, str], Sequence[int]], depth: int) -> list[str]:
    """One loop over all layers; what some have only stands under a condition."""
    body: list[str] = []
    groups: dict[tuple[int, ...], list[tuple[str, str]]] = {}
    for template, indices in templates.items():
        groups.setdefault(tuple(indices), []).append(template)
    having: dict[str, set[int]] = {}
    for (_, text), indices in templates.items():
        for name in _STRING.findall(text):
            having.setdefault(name, set()).update(indices)
    for indices, group in groups.items():
        lines = [_assigned(target, text) for target, text in group]
        if indices != tuple(range(depth)):
            telling = [name for _, text in group for name in _STRING.findall(text) if having[name] == {*indices}]
            among = f"i in {indices!r}" if len(indices) > 1 else f"i == {indices[0]}"
            where = f'f"{telling[0].replace("{e}", "0")}" in weights' if telling else among
            lines = [f"if {where}:", *(f"    {line}" for line in lines)]
        body += lines
    text = "\n".join(body).replace(f'"{layers}.{{i}}.', '"{prefix}.')
    begin = f'    prefix = f"{layers}.{{i}}"'
    head = [f"for i in range(len(self.{layers})):", *([begin] if "{prefix}" in text else [])]
    return [*head, *(f"    {line}" for line in text.splitlines())]

"""The root's ``__call__``: its parameters, and the checks of what was fixed when the module was exported."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from keyword import iskeyword

from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.guards import relations
from mlxport.graph.lower.helpers import inputs as input_helpers
from mlxport.graph.lower.registry import helper
from mlxport.graph.write.input_sizes import input_sizes
from mlxport.graph.write.input_structure import Input, access, inputs_of, structure_checks
from mlxport.graph.write.limits_told import size_places
from mlxport.graph.write.reserved import unreserved
from mlxport.graph.write.root_call import RootCall

__all__ = ["call_signature", "input_names"]


def input_names(captured: Captured) -> dict[Node, str]:
    """What each tensor of the inputs is called in the root's ``__call__``."""
    names: dict[Node, str] = {}
    for name, path, leaf in ((item.name, *found) for item in inputs_of(captured) for found in item.leaves):
        if isinstance(leaf, Node):
            last = [str(part) for part in path if isinstance(part, str)]
            wish = _identifier(last[-1] if last else "_".join([name, *map(str, path)]))
            # A part may not hide the parameter that further parts are taken from.
            if wish in names.values() or path and wish in captured.signature.parameters:
                wish = _identifier("_".join([name, *map(str, path)]))
            while wish in names.values():
                wish += "_"
            names[leaf] = wish
    return names


def _identifier(key: str) -> str:
    name = re.sub(r"\W", "_", key) or "x"
    return f"x_{name}" if name[0].isdigit() else unreserved(name)


def call_signature(captured: Captured, names: Mapping[Node, str]) -> RootCall:
    """The root's ``__call__``: the original's parameters, checks of what was fixed, and the parts of nested inputs."""
    inputs = inputs_of(captured)
    own = {item.name: _identifier(item.name) for item in inputs}
    renamed = {mine: name for name, mine in own.items() if mine != name and name != "self"}
    structure: list[str] = []
    parts: list[str] = []
    fixed: dict[str, str] = {}
    defaults: dict[str, str] = {}
    for item in inputs:
        structure += structure_checks(item, own[item.name])
        for path, leaf in item.leaves:
            place = access(own[item.name], path)
            if isinstance(leaf, Node):
                parts += [f"{names[leaf]} = {place}"] if path else []
            elif not path:
                defaults[item.name] = fixed[place] = repr(leaf)
            elif isinstance(leaf, bool | int | float | str | None):
                fixed[place] = repr(leaf)
    checks = _shape_check(captured, names, renamed)
    if fixed:
        words = {place: _word(place, renamed) for place in fixed}
        checks.append(f"check_fixed({', '.join(f'{words[place]}=({place}, {fixed[place]})' for place in fixed)})")
        helper(input_helpers.check_fixed)
    return RootCall(_parameters(captured.signature, inputs, defaults), [*structure, *parts, *checks], renamed)


def _word(place: str, renamed: Mapping[str, str]) -> str:
    """A place in the arguments as one word, which names it in an error."""
    words = "_".join(renamed.get(word, word) for word in re.findall(r"\w+", place))
    return words if words.isidentifier() and not iskeyword(words) else f"x_{words}"


def _parameters(signature: inspect.Signature, inputs: Sequence[Input], defaults: Mapping[str, str]) -> str:
    """The parameters, given as the original's are: what the example left out is none, and nothing takes its place."""
    kinds = inspect.Parameter
    given = {item.name for item in inputs}
    texts, starred, optional = ["self"], False, False
    last_by_place = max((i for i, item in enumerate(inputs) if item.kind is kinds.POSITIONAL_ONLY), default=-1)
    moved = _moved(signature, given)
    for index, item in enumerate(inputs):
        name = item.name if item.name != "self" else _identifier(item.name)  # what the first one is called here
        if item.kind is kinds.VAR_POSITIONAL:
            texts.append(f"*{name}")
            starred = True
            continue
        if not starred and (item.kind is kinds.KEYWORD_ONLY or item.name in moved):
            texts.append("*")
            starred = True
        optional = optional or item.name in defaults
        default = defaults.get(item.name, "None" if optional and not starred else None)
        texts.append(name if default is None else f"{name}={default}")
        if index == last_by_place:
            texts.append("/")
    return ", ".join(texts)


def _moved(signature: inspect.Signature, given: Collection[str]) -> set[str]:
    """The parameters that have another place than in the original, since the example left out one before them."""
    by_place = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ]
    first = next((index for index, name in enumerate(by_place) if name not in given), len(by_place))
    return set(by_place[first:])


def _shape_check(captured: Captured, names: Mapping[Node, str], renamed: Mapping[str, str]) -> list[str]:
    sizes = input_sizes(captured, names)
    if not sizes.shapes:
        return []
    helper(input_helpers.check_inputs)
    told = {name: renamed.get(name, name) for name in sizes.shapes}
    text = "{" + ", ".join(f"{told[name]!r}: {shape!r}" for name, shape in sizes.shapes.items()) + "}"
    limits = sizes.limits()
    extra = f", {limits!r}" if limits else ""
    lines = [f"check_inputs({text}{extra}, {', '.join(f'{told[name]}={name}' for name in sizes.shapes)})"]
    for condition in relations(captured, sizes.symbols, sizes.rules, size_places(names)):
        words = re.sub(r"\w+", lambda word: renamed.get(word.group(), word.group()), condition)
        lines += [f"if not {condition}:", f'    raise ValueError("the sizes of the inputs must satisfy {words}")']
    return lines

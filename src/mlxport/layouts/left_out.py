"""Parts of a model that an output leaves out, such as a vision tower that a runtime has no code for.

A part is a whole subtree of the checkpoint's names of which no output needs a tensor. Buffers beside weights that are
used, layers that predict further tokens and copies of the embeddings are none: the model computes the same without.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlxport.errors import UnsupportedError
from mlxport.layouts.mlx_vlm.families import FAMILIES
from mlxport.model_config import ModelConfig
from mlxport.progress import format_bytes, listed
from mlxport.source.part_names import PICTURES, TOWER, kinds_of_tower, predicts_further
from mlxport.types import Checkpoint, ModelPart

if TYPE_CHECKING:
    from mlxport.layouts.base import Layout
    from mlxport.transform import Program

__all__ = [
    "PROCESSORS",
    "absent_towers",
    "left_out",
    "parts_in_words",
    "refuse_left_out",
    "refuse_whole",
    "said_before",
    "without",
]

PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""Files about inputs of a tower: where they lie beside a text model, runtimes take it for the whole."""

_HEAD = re.compile(r"(?:.*\.)?(?:lm_head|embed_out|output_layer|vocab_projector)")  # the last is DistilBERT's
_FLOATS = ("F", "BF")


def left_out(checkpoint: Checkpoint, program: Program) -> tuple[ModelPart, ...]:
    """The parts of a checkpoint that no output of ``program`` needs, the largest first."""
    unused = _unused(program)
    used = _modules(checkpoint.tensors.keys() - unused)
    parts: dict[str, ModelPart] = {}
    whole: set[str] = set()  # parts with a matrix: more than a buffer
    for name in checkpoint.tensors:
        ref = checkpoint.tensors[name]
        if name not in unused or not ref.dtype.startswith(_FLOATS):
            continue
        root = _root(name, used)
        known = parts.get(root, ModelPart(root, 0, 0))
        parts[root] = replace(known, tensors=known.tensors + 1, nbytes=known.nbytes + ref.nbytes)
        if len(ref.shape) > 1:
            whole.add(root)
    declared, layers = dict(_declared(checkpoint.config)), checkpoint.model_config.layers
    found = (
        replace(part, declared=_declaring(root, declared))
        for root, part in parts.items()
        if not _is_extra(root, layers) and (TOWER.search(root) or (declared and root in whole and _is_apart(root)))
    )
    return tuple(sorted(found, key=lambda part: -part.nbytes))


def refuse_left_out(parts: Collection[ModelPart], where: str) -> None:
    """Refuse an output that would be a part of a model without a word.

    Raises:
        UnsupportedError: Names the parts and how to convert without them.
    """
    if not parts:
        return
    hint = "add --text-only to convert the text model alone"
    if any(kinds_of_tower(part.name) & PICTURES for part in parts):
        hint += f"; with what reads pictures, these convert: {', '.join(sorted(FAMILIES))}"
    message = f"{where}: the output would be the text model alone, without {parts_in_words(parts)}"
    raise UnsupportedError(message, hint=hint)


def refuse_whole(config: Mapping[str, Any], layout: Layout, where: str) -> None:
    """Refuse the text model alone where the layout would be that of the whole model: it has no code for that part.

    Args:
        config: Of the checkpoint.
        layout: The output's.
        where: What to call the config in the error.

    Raises:
        UnsupportedError: Names the text model.
    """
    model = ModelConfig(config)
    if layout.not_generating is None or not model.has_text_part:
        return
    kind = model.text.get("model_type")
    text = ".".join(model.path) + (f" ({kind})" if isinstance(kind, str) else "")
    raise UnsupportedError(
        f"{where}: --text-only: no layout has code for the text model that {text} describes without the rest of "
        f"{model.model_type}; the layout {layout.name} would be of the whole model",
        hint="port the text model as a module of your own: mlxport port FILE.py:FACTORY DST",
    )


def said_before(parts: Collection[ModelPart], whole: Layout | None = None) -> tuple[str, ...]:
    """What is said of parts before anything is converted; nothing where there are none.

    Args:
        parts: What an output for mlx-lm would lack.
        whole: The layout that the whole model converts to, where there is one.
    """
    if not parts:
        return ()
    named = parts_in_words(parts)
    if whole is not None:
        return (f"this is of the text model alone (--text-only); without it convert keeps {named}, for {whole.name}",)
    return (f"the output would be the text model alone, without {named}: convert needs --text-only",)


def parts_in_words(parts: Collection[ModelPart], most: int = 4) -> str:
    """Names, what declares them, how many tensors and bytes."""
    named = [
        f"{part.name} ({f'{part.declared}, ' if part.declared else ''}"
        f"{part.tensors} tensor{'s' if part.tensors != 1 else ''}, {format_bytes(part.nbytes)})"
        for part in parts
    ]
    return listed(named, most)


def absent_towers(config: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    """Where a config describes towers of which tensors of these names hold nothing: keys, joined by dots."""
    present = {kind for name in names if TOWER.search(name) for kind in kinds_of_tower(name)}
    return tuple(
        path for path, key in _declared(config) if TOWER.search(key) and present.isdisjoint(kinds_of_tower(key))
    )


def without(config: Mapping[str, Any], paths: Collection[str]) -> dict[str, Any]:
    """A config without the parts at ``paths``."""
    return {
        key: without(value, [path.removeprefix(f"{key}.") for path in paths if path.startswith(f"{key}.")])
        if isinstance(value, Mapping)
        else value
        for key, value in config.items()
        if key not in paths
    }


def _unused(program: Program) -> frozenset[str]:
    """Tensors that no output needs; where the trace could not follow an output, those that names tell apart."""
    if all(output.value is not None for output in program.outputs.values()):
        return frozenset(program.unused())
    if any(TOWER.search(name) for name in program.outputs):
        return frozenset()
    return frozenset(name for name in program.refs if TOWER.search(name))


def _modules(names: Collection[str]) -> set[str]:
    """Paths of the modules that tensors are in, outer ones included."""
    found: set[str] = set()
    for name in names:
        while (name := name.rpartition(".")[0]) and name not in found:
            found.add(name)
    return found


def _root(name: str, used: Collection[str]) -> str:
    """The outermost module of an unused tensor that holds no used one; the tensor itself where there is none."""
    path = ""
    for word in name.split("."):
        path = f"{path}.{word}" if path else word
        if path not in used:
            return path
    return name


def _is_extra(root: str, layers: int | None) -> bool:
    """Whether a subtree predicts further tokens, is an output layer that embeddings stand for, or pools unread."""
    pools = root.split(".")[-1] == "pooler" and not TOWER.search(root)  # ALIGN's class has one, and reads past it
    return pools or predicts_further(root, layers) or bool(_HEAD.fullmatch(root))


def _is_apart(root: str) -> bool:
    """Whether a subtree lies outside of the layers of the text model, of which a runtime may need fewer tensors."""
    return not any(word.isdigit() for word in root.split(".")[:-1])


def _declared(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Path and key of what describes a model of its own in a config, the text model and what leads there apart."""
    model = ModelConfig(config)
    for depth, part in enumerate(model.parts):
        for key, value in part.items():
            if not isinstance(value, Mapping) or not value or key in model.path[depth : depth + 1]:
                continue
            if TOWER.search(key) or (key.endswith("_config") and _is_name(value.get("model_type"))):
                yield ".".join((*model.path[:depth], key)), key


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _declaring(root: str, declared: Mapping[str, str]) -> str:
    """What declares a subtree: the part of the config whose name says the same."""
    for path, key in declared.items():
        stem = key.removesuffix("_config")
        if not kinds_of_tower(stem).isdisjoint(kinds_of_tower(root)) or stem in root.split("."):
            return path
    return ""

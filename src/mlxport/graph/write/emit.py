"""Write the source of a port: one readable Python file that needs nothing but mlx."""

from __future__ import annotations

import ast
import copy
import re
import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from mlxport.graph.lower.one_function import helper_sources, used_helpers
from mlxport.graph.write.classes import ClassDef
from mlxport.graph.write.encoding import Encoding, encode_steps, step_of_decoder
from mlxport.graph.write.for_loops import blocks
from mlxport.graph.write.generating import Generating, with_cache
from mlxport.graph.write.layer_lists import LayerList, spelled_list
from mlxport.graph.write.loops import roll
from mlxport.graph.write.number_names import Field
from mlxport.graph.write.paths import member, target
from mlxport.graph.write.root_call import RootCall, call_lines
from mlxport.graph.write.scope_parts import Step

__all__ = ["file_source", "format_source", "layer_fields"]

_LOAD = '''
def load(path: str | Path = Path(__file__).parent) -> "Model":
    """The model with the weights beside this file (or in ``path``), ready to run."""
    path = Path(path)
    config = json.loads((path / "config.json").read_text())
    model = Model(ModelArgs.from_dict(config))
    weights = {}
    for file in sorted(path.glob("model*.safetensors")):
        weights.update(mx.load(str(file)))
    if quantization := config.get("quantization"):

        def settings(name, layer):
            return hasattr(layer, "to_quantized") and quantization.get(name, f"{name}.scales" in weights)

        sizes = {key: quantization[key] for key in ("group_size", "bits", "mode") if key in quantization}
        nn.quantize(model, **sizes, class_predicate=settings)
    model.load_weights(list(weights.items()))
    return model.eval()
'''

# What differs for a part of a model: others have fields and weights beside it.
_OF_A_PART = (
    ("The model with the weights", "This part of the model with its weights"),
    ("from_dict(config)", "from_dict(config{keys})"),
    (
        "    model.load_weights(list(weights.items()))",
        "    own = dict(tree_flatten(model.parameters()))\n"
        "    model.load_weights([(name, array) for name, array in weights.items() if name in own])",
    ),
)


def _part_load(fields_at: Sequence[str]) -> str:
    text = _LOAD
    for whole, other in _OF_A_PART:
        assert whole in text
        text = text.replace(whole, other.replace("{keys}", "".join(f"[{key!r}]" for key in fields_at)))
    return text


def file_source(
    title: str,
    classes: Sequence[ClassDef],
    fields: Sequence[Field],
    root: ClassDef,
    call: RootCall,
    model_type: str,
    limits: Sequence[str] = (),
    generates: Generating | None = None,
    fields_at: Sequence[str] = (),
    functions: Mapping[str, str] | None = None,
) -> str:
    """The whole file.

    Args:
        title: First line of the module's docstring.
        classes: Inner classes first.
        fields: Fields of ``ModelArgs``.
        root: The class of the whole model, one of ``classes``.
        call: How the root is called.
        model_type: Value of ``ModelArgs.model_type``.
        limits: Sentences on what the root's inputs may hold, for its docstring.
        generates: What a language model has beside, for mlx-lm to run it: without an encoder it has no ``load``.
        fields_at: Keys that lead to its fields in config.json, where it is a part of a model.
        functions: Name and source of the functions that classes call.
    """
    parts = []
    for cls in classes:
        text = _class_source(cls, call if cls is root else None, limits if cls is root else (), generates)
        parts.append(text if generates is None or cls is not root else f"{text}\n\n{generates.methods}")
    if root.name != "Model":
        parts.append(f"Model = {root.name}")
    parts.insert(0, _args_source([*fields, *layer_fields("\n".join(parts), fields, generates)], model_type))
    body = "\n\n\n".join([*(text.strip() for text in (functions or {}).values()), *parts])
    helpers = list(helper_sources(used_helpers(body)).values())
    loads = (
        [(_part_load(fields_at) if fields_at else _LOAD).strip()]
        if generates is None or generates.encoding is not None
        else []
    )
    code = "\n\n\n".join([*map(str.strip, helpers), body, *loads])
    imports = ["import json"]
    if re.search(r"\bmath\.", code):
        imports.append("import math")
    imports += [
        "from dataclasses import dataclass, field, fields",
        "from pathlib import Path",
        "from typing import Any",
        "",
        "import mlx.core as mx",
        "import mlx.nn as nn",
        *(("from mlx.utils import tree_flatten",) if fields_at else ()),
        *(() if generates is None else generates.imports),
    ]
    return f'"""{title}"""\n\n' + "\n".join(imports) + "\n\n\n" + code + "\n"


def layer_fields(source: str, fields: Sequence[Field], generates: Generating | None) -> list[Field]:
    """Fields beside ``fields`` that say of which layers a language model is, if ``source`` names them."""
    found = {} if generates is None else generates.layers.fields()
    known = {item.name for item in fields}
    return [
        Field(name, value)
        for name, value in found.items()
        if name not in known and re.search(rf"\bargs\.{name}\b", source)
    ]


def _args_source(fields: Sequence[Field], model_type: str) -> str:
    lines = ["@dataclass", "class ModelArgs:", f"    model_type: str = {model_type!r}"]
    lines += [f"    {item.name}: {type(item.value).__name__} = {_default(item.value)}" for item in fields]
    lines += ["", "    @classmethod", "    def from_dict(cls, params: dict) -> \"ModelArgs\":",
              "        names = {field.name for field in fields(cls)}",
              "        return cls(**{key: value for key, value in params.items() if key in names})"]  # fmt: skip
    return "\n".join(lines)


def _default(value: Any) -> str:
    return f"field(default_factory=lambda: {spelled_list(value)})" if isinstance(value, list) else repr(value)


def _text(tree: ast.expr) -> str:
    return ast.unparse(ast.fix_missing_locations(copy.deepcopy(tree)))


def _class_source(cls: ClassDef, call: RootCall | None, limits: Sequence[str], generates: Generating | None) -> str:
    lines = [f"class {cls.name}(nn.Module):"]
    if limits:
        first = '"""Tables limit the inputs. Values are not checked: MLX reads on where torch raises.'
        told = [textwrap.fill(limit, 112, break_long_words=False, break_on_hyphens=False) for limit in limits]
        lines += [*textwrap.indent("\n".join([first, "", *told, '"""']), "    ").splitlines(), ""]
    layers = generates.layers if generates is not None and _owns(cls, generates.layers) else None
    init = _init_lines(cls, layers)
    options = "".join(f", {name}" for name in cls.options)
    if init or call is not None:
        arguments = (", args: ModelArgs" if cls.needs_args or call is not None else "") + options
        lines += [f"    def __init__(self{arguments}):", "        super().__init__()"]
        if call is not None and generates is not None:
            lines += ["        self.args = args", "        self.model_type = args.model_type"]
        made = len(lines)
        lines += textwrap.indent("\n".join(init), "        ").splitlines()
        lines.append("")
    steps, result = cls.steps, cls.result
    encoding = generates.encoding if generates is not None and call is not None else None
    if encoding is not None and result is not None:
        lines += [*_encode_lines(cls, encode_steps(encoding, steps, result), encoding, generates), ""]
        steps, result = step_of_decoder(encoding, steps, result)
    call = call if call is not None else RootCall(", ".join(["self", *cls.parameters]))
    statements = _statements(cls, steps, generates)
    if layers is not None:
        kept = [name for name in layers.fields() if f"self.{name}" in "\n".join(statements)]
        lines[made:made] = [f"        self.{name} = args.{name}" for name in kept]
    if result is not None:
        statements.append(f"return {_returned(result)}")
    return "\n".join([*lines, *textwrap.indent("\n".join(call_lines(call, statements)), "    ").splitlines()])


def _statements(cls: ClassDef, steps: Sequence[Step], generates: Generating | None) -> list[str]:
    lists = {**_lists(cls), **({} if generates is None else generates.lists)}
    of_layers = generates.layers if generates is not None and _owns(cls, generates.layers) else None

    def lines(plain: Sequence[Step]) -> list[str]:
        written = [(step.targets, _returned(step.value)) for step in plain]
        return roll((of_layers.looped(written, lists) if of_layers is not None else None) or written, lists)

    rolled = blocks(steps, 0, lines)
    return rolled if generates is None or generates.encoding is not None else list(with_cache(rolled))


def _owns(cls: ClassDef, layers: LayerList) -> bool:
    """Whether the list of a language model's layers is an attribute of the class, which is given ``args``."""
    owner = layers.path.rpartition(".")[0]
    return cls.paths == (owner,) and (cls.needs_args or not owner)


def _encode_lines(cls: ClassDef, steps: Sequence[Step], encoding: Encoding, generates: Generating | None) -> list[str]:
    what = "tokens [B, L]" if encoding.source == "input_ids" else "features"
    body = [f'"""Read {what}; what the decoder asks of them is put into ``cache``, of ``make_cache``."""']
    body += _statements(cls, steps, generates)
    head = f"    def encode(self, {encoding.source}, cache):"
    return [head, *textwrap.indent("\n".join(body), "        ").splitlines()]


def _returned(tree: ast.expr) -> str:
    text = _text(tree)
    return text[1:-1] if isinstance(tree, ast.Tuple) and len(tree.elts) > 1 else text


def _lists(cls: ClassDef) -> dict[str, int]:
    """Attribute expressions that are lists, with their lengths."""
    lengths: dict[str, int] = {}
    for path in cls.init:
        parts = path.split(".")
        for index, part in enumerate(parts):
            if part.isdigit():
                name = ast.unparse(ast.fix_missing_locations(member(".".join(parts[:index]))))
                lengths[name] = max(lengths.get(name, 0), int(part) + 1)
    return lengths


# The constructor: a tree of attributes, lists where the names are numbers.
def _init_lines(cls: ClassDef, layers: LayerList | None = None) -> list[str]:
    lines = [f"self.{name} = {_text(value)}" for name, value in cls.attributes.items()]
    tree: dict[str, Any] = {}
    for path, value in cls.init.items():
        level = tree
        *parents, last = path.split(".")
        for part in parents:
            level = level.setdefault(part, {})
            if not isinstance(level, dict):
                raise AssertionError(f"{path} lies inside of a layer")
        level[last] = value
    for name, value in tree.items():
        listed = _layers_text(value) if layers is not None and name == layers.path.rpartition(".")[2] else []
        whole = layers.constructed(listed) if layers is not None else None
        lines += [f"self.{name} = {whole}"] if whole else _assign(target("self", name), value)
    if cls.buffers:
        direct = [name for name in cls.buffers if "." not in name]
        if direct:
            lines.append(f"self.freeze(keys={direct!r}, recurse=False)")
    return lines


def _assign(where: str, value: Any, made: bool = False) -> list[str]:
    """Statements that put ``value``, an expression or a tree of them, at ``where``."""
    if (text := _element(value)) is not None:
        return [f"{where} = {text}"]
    if not all(key.isdigit() for key in value):
        lines = [] if made else [f"{where} = nn.Module()"]
        return lines + [line for name, inner in value.items() for line in _assign(target(where, name), inner)]
    lines = [f"{where} = [nn.Module() for _ in range({1 + max(map(int, value))})]"]
    return lines + [line for index, inner in value.items() for line in _assign(f"{where}[{index}]", inner, True)]


def _element(value: Any) -> str | None:
    if isinstance(value, ast.expr):
        return _text(value)
    if all(key.isdigit() for key in value):
        inner = {int(key): _element(item) for key, item in value.items()}
        return None if any(text is None for text in inner.values()) else _list_text(inner)
    return None


def _layers_text(value: Any) -> list[str]:
    """The constructors of a list; none where they are not one expression each."""
    inner = {key: _element(item) for key, item in value.items()} if isinstance(value, dict) else {}
    texts = [inner.get(str(index)) for index in range(len(inner))]
    return [text for text in texts if text] if all(texts) else []


def _list_text(items: dict[int, Any]) -> str:
    count = max(items) + 1
    texts = [items.get(index) or "nn.Identity()" for index in range(count)]
    if count > 1 and len(set(texts)) == 1:
        return f"[{texts[0]} for _ in range({count})]"
    return _varying(texts) or "[" + ", ".join(texts) + "]"


_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])")


def _varying(texts: Sequence[str]) -> str | None:
    """``[Block(dim) for dim in (64, 128)]`` where elements differ in one number."""
    if len(texts) < 3 or len({_NUMBER.sub("#", text) for text in texts}) != 1:
        return None
    columns = list(zip(*[_NUMBER.findall(text) for text in texts], strict=True))
    differing = [index for index, column in enumerate(columns) if len(set(column)) > 1]
    if len({columns[index] for index in differing}) != 1:
        return None
    values = columns[differing[0]]
    counter = iter(range(len(columns)))
    template = _NUMBER.sub(lambda match: "size" if next(counter) in differing else match.group(), texts[0])
    if list(map(float, values)) == list(range(len(values))):
        return f"[{template.replace('size', 'i')} for i in range({len(values)})]" if "size" not in texts[0] else None
    return f"[{template} for size in ({', '.join(values)})]" if "size" not in texts[0] else None


def format_source(source: str) -> str:
    """``source`` as ``ruff format`` writes it, unused imports taken out and imports sorted.

    Raises:
        SyntaxError: if the source is not Python, which is a bug of the emitter.
    """
    from ruff import find_ruff_bin

    ast.parse(source)
    ruff = find_ruff_bin()
    lint = [ruff, "check", "--isolated", "--fix-only", "--quiet", "--select", "F401,I", "--line-length", "120", "-"]
    layout = [ruff, "format", "--isolated", "--quiet", "--line-length", "120", "-"]
    for command in (lint, layout):
        source = subprocess.run(command, input=source, text=True, capture_output=True, check=True).stdout
    return source

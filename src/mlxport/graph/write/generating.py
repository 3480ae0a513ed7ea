"""What the source of a language model has beside, for mlx-lm to run it: its layers, its caches."""

from __future__ import annotations

import ast
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower.token_ops import is_on_cache
from mlxport.graph.rewrite.caches.cached_step import CacheKind
from mlxport.graph.write.encoding import Encoding
from mlxport.graph.write.layer_lists import LayerList, layer_list
from mlxport.graph.write.root_call import RootCall
from mlxport.graph.write.router_bits import router_bits

__all__ = ["IMPORTED", "Generating", "generating", "with_cache", "with_method"]

_UPDATE = re.compile(r"( *)(\w+, \w+) = (\w+)\.update_and_fetch\((.*)\)")

_IMPORTS = (
    "from mlx_lm.models.activations import swiglu",
    "from mlx_lm.models.base import create_attention_mask, create_ssm_mask, scaled_dot_product_attention",
    "from mlx_lm.models.cache import ArraysCache, CacheList, ChunkedKVCache, KVCache, RotatingKVCache",
    "from mlx_lm.models.mla import MultiLinear",
    "from mlx_lm.models.gated_delta import gated_delta_kernel, gated_delta_ops",
    "from mlx_lm.models.ssm import ssm_update",
)
IMPORTED = frozenset(name for line in _IMPORTS for name in line.partition(" import ")[2].split(", "))


@dataclass(frozen=True)
class Generating:
    """Parts of the file that are the same for all language models.

    Attributes:
        call: How the root is called.
        methods: Further methods of the root, indented.
        imports: From mlx-lm; those that are not used are taken out again.
        lists: Expressions of lists, with their lengths: the caches, and the root's layers.
        layers: What config.json says of the layers.
        encoding: How the program is cut in two where it has an encoder.
    """

    call: RootCall
    methods: str
    imports: tuple[str, ...]
    lists: Mapping[str, int]
    layers: LayerList
    encoding: Encoding | None = None


def generating(captured: Captured, caches: Sequence[CacheKind]) -> Generating:
    """The parts for a model with these caches."""
    layers = _layers(captured)
    listed_as = layer_list(captured, layers)
    of_all = "self.layers" if len(list(captured.modules[layers].children())) == len(caches) else f"range({len(caches)})"
    listed = ["@property", "def layers(self):", f"    return self.{layers}", ""]
    methods = [
        *(listed if layers != "layers" else []),
        *router_bits(captured),
        *("def make_cache(self):", f"    return {_made(caches, of_all, listed_as)}"),
    ]
    call = RootCall("self, input_ids, cache=None", ["if cache is None:", f"    cache = {_none(caches, of_all)}"])
    lists, encoding = {"cache": len(caches)}, _encoding(captured, caches)
    if encoding is not None:
        read = ["if cache is None:", "    cache = self.make_cache()", f"    self.encode({encoding.source}, cache)"]
        call = RootCall(f"self, {encoding.written}, cache=None, {encoding.source}=None", read)
        lists |= {f"self.{layers}": len(caches)}
    text = "\n".join(f"    {line}" if line else "" for line in methods)
    return Generating(call, text, _IMPORTS, lists, listed_as, encoding)


def _encoding(captured: Captured, caches: Sequence[CacheKind]) -> Encoding | None:
    """How the program is cut in two, where its layers keep something of an encoder's output."""
    source, written, *rest = captured.signature.parameters
    if not rest:
        return None
    places = [f"cache[{layer}][0][{index}]" for layer, kind in enumerate(caches) for index in range(kind.states)]
    return Encoding(source, written, tuple(places))


def _layers(captured: Captured) -> str:
    """Path of the list of the modules that the caches are of: the outermost list in which most ops on them lie."""
    found: Counter[str] = Counter()
    for node in captured.graph.nodes:
        if node.op == "call_function" and is_on_cache(node):
            paths = [path.partition("@")[0] for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
            found.update(path.rpartition(".")[0] for path in paths[: _outermost(paths)][-1:])
    return found.most_common(1)[0][0]


def _outermost(paths: Sequence[str]) -> int:
    """How many of nested modules there are up to the first that is one of a list; 0 without such."""
    return next((1 + index for index, path in enumerate(paths) if path.rpartition(".")[2].isdigit()), 0)


def _made(caches: Sequence[CacheKind], of_all: str, layers: LayerList) -> str:
    """The expression of a list of new caches; ``of_all`` has as many items."""
    if len(set(caches)) == 1:
        return f"[{_cache(caches[0])} for _ in {of_all}]"
    texts = [_cache(kind) for kind in caches]
    return layers.caches(texts) or "[" + ", ".join(texts) + "]"


def _none(caches: Sequence[CacheKind], of_all: str) -> str:
    """The expression of a list of no caches."""
    empty = [_empty(kind) for kind in caches]
    if len(set(empty)) == 1:
        return f"[{empty[0]} for _ in {of_all}]" if caches[0].stepped else f"[{empty[0]}] * len({of_all})"
    return f"[{', '.join(empty)}]"


def _empty(kind: CacheKind) -> str:
    """No cache of a layer; one of states where these are carried from token to token."""
    if kind.indexes:
        return "(None, None)"
    states = f"ArraysCache(size={kind.states})" if kind.stepped else "None"
    return f"({states}, None)" if kind.both else states


def _cache(kind: CacheKind) -> str:
    keys = "KVCache()" if kind.window is None else f"RotatingKVCache(max_size={kind.window})"
    if kind.chunk:
        keys = f"ChunkedKVCache(chunk_size={kind.chunk})"
    if kind.indexes:
        return f"CacheList({keys}, KVCache())"
    if not kind.states:
        return keys
    states = f"ArraysCache(size={kind.states})"
    return f"CacheList({states}, {keys})" if kind.both else states


def with_cache(lines: Sequence[str]) -> Iterator[str]:
    """Lines of a body, a cache updated where there is one: evaluation and training have none, as in mlx-lm."""
    for line in lines:
        found = _UPDATE.fullmatch(line)
        if found is None:
            yield line
            continue
        indent, names, cache, given = found.groups()
        if names != given:
            yield f"{indent}{names} = {given}"
        yield f"{indent}if {cache} is not None:"
        yield f"{indent}    {names} = {cache}.update_and_fetch({names})"


def with_method(source: str, text: str) -> str:
    """The file of a language model with one more method of its root, after that which makes caches."""
    made = next(
        item
        for cls in ast.parse(source).body
        if isinstance(cls, ast.ClassDef)
        for item in cls.body
        if isinstance(item, ast.FunctionDef) and item.name == "make_cache"
    )
    lines = source.splitlines()
    assert made.end_lineno is not None
    return "\n".join([*lines[: made.end_lineno], "", textwrap.indent(text, "    "), *lines[made.end_lineno :], ""])

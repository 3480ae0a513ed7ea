"""The output's side of a probe of far positions: the kinds of attention that a model has, and one of each run alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.models import rope_utils
from mlx_lm.models.cache import ChunkedKVCache, make_prompt_cache

from mlxport.errors import UnsupportedError
from mlxport.model import loaded as out
from mlxport.model.block_paths import block_of, earlier_blocks
from mlxport.model.hooks import first_array, hooked
from mlxport.model.streaming import stream
from mlxport.model.tensors import stored_tensors
from mlxport.parity.far_caches import FarCache, Timeline, leaves, stand_ins
from mlxport.parity.far_positions import FAILURES, Pieces, Reached
from mlxport.parity.recording import Array
from mlxport.transform import float32

__all__ = ["Attention", "FarOutput"]

_ROPES = (nn.RoPE, *(cls for cls in vars(rope_utils).values() if isinstance(cls, type) and issubclass(cls, nn.Module)))
_SMALL = 4096  # elements of a table that belongs to a module's settings, such as a rope's frequencies
_NUMBERS = ("layer_idx", "layer_id", "layer_index", "layer_number", "block_idx")


@dataclass(frozen=True)
class Attention:
    """The attention of one block, of a kind that no earlier block has.

    Attributes:
        block: Path of its block.
        path: Path of the module that is given the cache.
        kind: What the kinds are told apart by.
        limit: Tokens that its cache keeps, None for all.
        alone: Its masks take every token since the last that was dropped to be there, so each call stands alone.
    """

    block: str
    path: str
    kind: Any
    limit: int | None
    alone: bool


class FarOutput:
    """An output whose weights are read, and whose blocks run, only where they are asked for.

    Args:
        folder: What mlx-lm loads.
        trust_remote_code: Whether code of the folder may run.

    Raises:
        VerificationError: mlx-lm cannot load it.
    """

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        self.model = out.upcast(out.load_output(folder, trust_remote_code=trust_remote_code, in_float32=True))
        # Blocks stay lazy, so that those that are passed over are never read; of embeddings only rows are.
        self.tensors = stored_tensors(folder)
        stream(self.model, {name: tensor for name, tensor in self.tensors.items() if block_of(name) is None})
        self.modules: dict[str, Any] = dict(self.model.named_modules())
        self.windows: set[int] = set()

    def attentions(self) -> list[Attention]:
        """Each kind of attention that positions reach, by its first block.

        Raises:
            UnsupportedError: The model does not run on caches that begin anywhere.
        """
        inside = {path: module for path, module in self.modules.items() if block_of(path)}
        names = {id(module): path for path, module in reversed(inside.items())}
        after = [m for path, m in self.modules.items() if path not in inside and callable(m) and not m.children()]
        given: dict[str, FarCache | None] = {}
        waiting = {str(block_of(path)) for path in inside}

        def answer(module: Any, _: str, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            if id(module) not in names:
                if not waiting:  # the head would compute its input, and so read every weight
                    raise Reached
                return call(*args, **kwargs)
            cache = next(leaves((*args, *kwargs.values())), None)
            path = names[id(module)]
            waiting.discard(path)
            if cache is not None:
                given.setdefault(path, cache)
            elif isinstance(module, _ROPES):
                given.setdefault(path.rpartition(".")[0], None)
            return call(*args, **kwargs)

        timeline = Timeline()
        caches = stand_ins(make_prompt_cache(self.model), timeline)
        with hooked([*(module for module in inside.values() if callable(module)), *after], answer):
            self._call(caches, timeline, [0, 1], [0, 0], forget=False)
        self.windows |= timeline.windows | {c.limit for c in leaves(caches) if c.limit}
        return self._kinds(given)

    def _kinds(self, given: dict[str, FarCache | None]) -> list[Attention]:
        found: dict[Any, Attention] = {}
        for block in dict.fromkeys(block_of(path) for path in given):
            assert block is not None
            below = [path for path in given if path.startswith(f"{block}.")]
            cached = [path for path in below if given[path] is not None] or below or [block]
            for path in (p for p in cached if not any(p.startswith(f"{other}.") for other in cached)):
                cache = given[path]
                limit = None if cache is None else cache.limit
                kind = (path[len(block) :], type(cache).__name__, limit, self._settings(path))
                alone = isinstance(cache, ChunkedKVCache)
                found.setdefault(kind, Attention(block, path, kind, limit, alone))
        return list(found.values())

    def _settings(self, path: str) -> Any:
        """Everything that is set in a module and below it, but the number of its layer."""
        return tuple(
            (name[len(path) :], type(module).__name__, *_scalars(module))
            for name, module in sorted(self.modules.items())
            if name == path or name.startswith(f"{path}.")
        )

    def run(self, attention: Attention, ids: Array, calls: Pieces, *, whole: bool = False) -> Array:
        """What an attention gives for each token, every earlier block passed over.

        Args:
            attention: Which.
            ids: Token ids, one for each position.
            calls: Positions of each call.
            whole: Take what its block adds to its input instead.

        Raises:
            UnsupportedError: It does not run so.
        """
        blocks = {path: self.modules[path] for path in earlier_blocks(attention.block, self.modules)}
        target = self.modules[attention.block if whole else attention.path]
        parts: list[Array] = []

        def answer(module: Any, _: str, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            given, made = first_array((args, kwargs)), first_array(result)
            if module is not target:
                # Lazy, and never computed: only the form of what a block hands on is wanted.
                return _replaced(result, made, given)
            parts.append(_rows(made - given if whole else made))
            raise Reached

        timeline, place = Timeline(), 0
        caches = stand_ins(make_prompt_cache(self.model), timeline)
        with hooked([*blocks.values(), target], answer):
            for positions in calls:
                tokens = ids[place : place + len(positions)]
                self._call(caches, timeline, positions, tokens, forget=attention.alone)
                place += len(positions)
        self._let_go(attention.path)
        return np.concatenate(parts)

    def _let_go(self, path: str) -> None:
        """Weights that were read go back to where they are read from."""
        names = [name for name in self.tensors if name.startswith(f"{path}.")]
        self.model.update(tree_unflatten([(name, float32(self.tensors[name].lazy())) for name in names]), strict=False)
        mx.clear_cache()

    def _call(self, caches: list[Any], timeline: Timeline, positions: list[int], ids: Any, *, forget: bool) -> None:
        timeline.past = [] if forget else timeline.past + timeline.now
        timeline.now = list(positions)
        for cache in leaves(caches):
            cache.jump(forget=forget)
        try:
            self.model(mx.array(np.asarray(ids))[None], cache=caches)
        except Reached:
            return
        except FAILURES as error:
            reason = f"mlx-lm's model does not run on a cache that begins anywhere: {type(error).__name__}: {error}"
            raise UnsupportedError(" ".join(reason.split())[:300]) from error


def _replaced(result: Any, made: Any, given: Any) -> Any:
    """What a block returned, with its input in place of its output."""
    if result is made:
        return given
    items = [given if item is made else item for item in result]
    return type(result)(*items) if hasattr(result, "_fields") else type(result)(items)


def _rows(array: mx.array) -> Array:
    values = np.array(array.astype(mx.float32))
    return values.reshape(-1, values.shape[-1])


def _scalars(module: Any) -> Iterable[Any]:
    for name, value in sorted({**vars(module), **dict(module.items())}.items()):
        if name in _NUMBERS:
            continue
        if isinstance(value, (bool, int, float, str)):
            yield name, value
        elif isinstance(value, mx.array) and name.startswith("_") and value.size <= _SMALL:
            yield name, np.array(value.astype(mx.float32)).tobytes()

"""The original's side of a probe of far positions: one attention of a torch model, run alone at given positions."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, _non_vmap_expansion_sdpa

from mlxport.errors import UnsupportedError
from mlxport.model.block_paths import earlier_blocks, is_block
from mlxport.model.hooks import first_array
from mlxport.parity.far_positions import FAILURES, Pieces, Reached
from mlxport.parity.path_pairs import align
from mlxport.parity.recording import Array

__all__ = ["FarOriginal"]


class _Keys(DynamicCache):  # type: ignore[misc]
    """Keys of tokens at any positions: what was read is all that is held, whatever the layer."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        for place, layer in enumerate(self.layers):
            if type(layer) is DynamicSlidingWindowLayer:  # it drops keys by their number, not by where they stand
                self.layers[place] = DynamicLayer()
        self.past: list[int] = []
        self.now: list[int] = []

    def step(self, positions: list[int], *, forget: bool) -> None:
        """Go on at ``positions``."""
        if forget:
            self.reset()
        self.past = [] if forget else self.past + self.now
        self.now = positions

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens stand before those of this call, read or not."""
        return self.now[0]

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Where this call begins."""
        return self.now[0]

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Number of keys; where they stand, the mask function knows."""
        return len(self.past) + query_length, 0


@contextlib.contextmanager
def _masks_by_position(keys: _Keys) -> Iterator[None]:
    """Transformers' own rules of who sees whom, asked about where the tokens stand."""

    def mask(batch_size: int, mask_function: Callable[..., Any], dtype: Any = torch.float32, **_: Any) -> torch.Tensor:
        queries, everyone = torch.tensor(keys.now), torch.tensor(keys.past + keys.now)
        places = _non_vmap_expansion_sdpa(torch.arange(batch_size), torch.arange(1), queries, everyone)
        seen = mask_function(*places).expand(batch_size, -1, len(queries), len(everyone))
        return torch.where(seen, torch.zeros((), dtype=dtype), torch.finfo(dtype).min)

    before = ALL_MASK_ATTENTION_FUNCTIONS["eager"]
    ALL_MASK_ATTENTION_FUNCTIONS["eager"] = mask
    try:
        yield
    finally:
        ALL_MASK_ATTENTION_FUNCTIONS["eager"] = before


class FarOriginal:
    """A torch model whose weights are read where they are used.

    Args:
        model: As ``lazy_model`` makes it.
        ids: Token ids of a probe, one for each position.

    Raises:
        UnsupportedError: It cannot be told positions.
    """

    def __init__(self, model: Any, ids: Array) -> None:
        # What stands around the language model looks for pictures and sound among the tokens.
        self.model, self.ids = model.get_decoder(), ids
        self.modules: dict[str, Any] = dict(self.model.named_modules())
        if "position_ids" not in inspect.signature(self.model.forward).parameters:
            raise UnsupportedError(f"{type(self.model).__name__} in torch cannot be told the positions of its tokens")

    def block(self, path: str) -> str:
        """The block that is the output's ``path``.

        Raises:
            UnsupportedError: There is none.
        """
        candidates = [name for name in self.modules if is_block(name)]
        found = align([path], candidates).get(path)
        if found is None:
            number = path.rpartition(".")[2]
            same = [name for name in candidates if name.rpartition(".")[2] == number]
            if len(same) != 1:
                raise UnsupportedError(f"the original has no block that is {path}")
            found = same[0]
        return found

    def settings(self, block: str, inside: str) -> Any:
        """What tells the kinds of a block's attention apart, ``inside`` being its path within the block."""
        module = self.modules.get(f"{block}{inside}", self.modules[block])
        number = int(block.rpartition(".")[2])
        config = self.model.config.get_text_config(decoder=True)
        kinds = getattr(config, "layer_types", None) or ()
        named = sorted(
            (name, value)
            for owner in (self.modules[block], module)
            for name, value in vars(owner).items()
            if isinstance(value, (bool, int, float, str)) and not name.startswith("_") and "layer_id" not in name
        )
        return type(module).__name__, kinds[number] if number < len(kinds) else None, tuple(map(repr, named))

    def run(self, block: str, inside: str, calls: Pieces, *, given: Any = None, forget: bool = False) -> Array:
        """What the attention of a block gives for each token, every earlier block passed over.

        Args:
            block: Path of the block.
            inside: Path of the attention within it, empty for what the block adds to its input.
            calls: Positions of each call.
            given: The positions that rotations and tables are told, where not those themselves.
            forget: Each call sees its own tokens only.

        Raises:
            UnsupportedError: It does not run so.
        """
        keys, parts = _Keys(self.model.config), []
        target = self.modules[block] if not inside else self.modules.get(f"{block}{inside}")

        def seen(module: Any, args: Any, kwargs: Any, result: Any) -> None:
            if target is not None and module is not target:
                return
            if target is None and not any(isinstance(item, _Keys) for item in (*args, *kwargs.values())):
                return
            made = first_array(result, torch.Tensor)
            rows = made if inside else made - first_array((args, kwargs), torch.Tensor)
            parts.append(rows.to(torch.float32).reshape(-1, rows.shape[-1]).numpy())
            raise Reached

        watched = [target] if target is not None else [m for m in self.modules[block].modules()][1:]
        handles = [module.register_forward_hook(seen, with_kwargs=True) for module in watched]
        place, earlier = 0, [self.modules[path] for path in earlier_blocks(block, self.modules)]
        try:
            with _masks_by_position(keys), _passed_over(earlier):
                for index, positions in enumerate(calls):
                    keys.step(positions, forget=forget)
                    told = positions if given is None else given[index]
                    self._call(self.ids[place : place + len(positions)], told, keys)
                    place += len(positions)
        finally:
            for handle in handles:
                handle.remove()
        return np.concatenate(parts)

    def _call(self, ids: Array, positions: Any, keys: _Keys) -> None:
        try:
            with torch.inference_mode():
                self.model(
                    input_ids=torch.from_numpy(ids.copy())[None],
                    position_ids=torch.tensor(positions)[None],
                    past_key_values=keys,
                    use_cache=True,
                )
        except Reached:
            return
        except FAILURES as error:
            reason = f"the original does not run so in torch: {type(error).__name__}: {error}"
            raise UnsupportedError(" ".join(reason.split())[:300]) from error
        raise UnsupportedError("the original does not call the attention that the output has")


@contextlib.contextmanager
def _passed_over(blocks: list[Any]) -> Iterator[None]:
    """Blocks that hand on what they are given, as those of the output do.

    Raises:
        UnsupportedError: It is not plain what one of them returns.
    """
    forms = [(block, _returned_beside(inspect.unwrap(type(block).forward))) for block in blocks]
    for block, form in forms:
        if form is None:
            raise UnsupportedError(f"{type(block).__name__} in torch cannot be passed over on the way to a later block")
    for block, beside in forms:
        block.forward = functools.partial(_hand_on, beside or 0)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _hand_on(beside: int, *args: Any, **kwargs: Any) -> Any:
    given = first_array((args, kwargs), torch.Tensor)
    return (given, *[None] * (beside - 1)) if beside else given


@functools.cache
def _returned_beside(forward: Callable[..., Any]) -> int | None:
    """How many values a block returns as a tuple, 0 for its hidden states alone; None where its source is not plain.

    By its source, since annotations are wrong in many models of transformers, and a run would read all of its weights.
    """
    try:
        function = ast.parse(textwrap.dedent(inspect.getsource(forward))).body[0]
    except (OSError, SyntaxError, TypeError):
        return None
    assert isinstance(function, ast.FunctionDef)
    made = _assigned(function)
    found = set()
    for node in (node for node in ast.walk(function) if isinstance(node, ast.Return)):
        value = node.value
        if (
            isinstance(value, ast.Name)
            and len(values := made.get(value.id, [])) == 1
            and isinstance(values[0], ast.Tuple)
        ):
            value = values[0]  # outputs = (hidden_states,)
        parts = value.elts if isinstance(value, ast.Tuple) else [value]
        states = isinstance(parts[0], ast.Name) and not any(map(_many, made.get(parts[0].id, [])))
        found.add((len(parts) if isinstance(value, ast.Tuple) else 0) if states else None)
    return found.pop() if len(found) == 1 else None


def _assigned(function: ast.FunctionDef) -> dict[str, list[ast.expr]]:
    """What each name of a function is set to, or has added to it."""
    made: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    made.setdefault(target.id, []).append(node.value)
    return made


def _many(value: ast.expr) -> bool:
    """Whether an expression is several values, as ``outputs + (weights,)`` is."""
    return isinstance(value, ast.Tuple) or (isinstance(value, ast.BinOp) and (_many(value.left) or _many(value.right)))

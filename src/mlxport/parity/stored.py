"""The output's stored weights, packed ones unpacked in torch, under the checkpoint's names and in its layout."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch

from mlxport.model.loaded import Packing
from mlxport.model.tensors import StoredTensor, output_refs
from mlxport.parity.dequantize import dequantize
from mlxport.parity.inverse import Invert
from mlxport.parity.torch_rows import read_block
from mlxport.quant import is_linear, level
from mlxport.quant.tolerances import ROW_FACTOR, STORED_WEIGHT_BOUND, level_name
from mlxport.transform import NotInvertible, float32
from mlxport.types import TensorRef

__all__ = ["Packing", "StoredLayout", "StoredWeights"]


# What is not a mere rename is inverted in one piece: up to this size (float32) in bounded memory. An expert layer
# needs the pieces of its three projections in turn.
GROUP_BYTES = 128 << 20
_RECENT = 3


class StoredWeights:
    """Tensors of the output under mlx-lm's names, any range of rows as float32, read and unpacked in torch."""

    def __init__(self, folder: Path, packing: Mapping[str, Packing]) -> None:
        self.refs = output_refs(folder)
        self.packing = packing
        parts = {f"{path}.{part}" for path in packing for part in ("scales", "biases", "global_scale")}
        self.names = tuple(name for name in self.refs if name not in parts)

    def how(self, name: str) -> Packing | None:
        """How a tensor is packed, None where it is not."""
        return self.packing.get(name.removesuffix(".weight")) if name.endswith(".weight") else None

    def shape(self, name: str) -> tuple[int, ...]:
        """Dimensions once unpacked."""
        shape, how = self.refs[name].shape, self.how(name)
        return (*shape[:-1], shape[-1] * 32 // int(how["bits"])) if how else shape

    def level(self, name: str) -> int:
        """Level of its quantization, 0 where it is not packed."""
        how = self.how(name)
        return level(str(how["mode"]), int(how["bits"])) if how else 0

    def part(self, name: str, part: str) -> TensorRef | None:
        """Scales or biases that belong to a packed weight."""
        return self.refs.get(f"{name.removesuffix('.weight')}.{part}")

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows along axis 0, floating ones as float32."""
        how = self.how(name)
        tensor = read_block(self.refs[name], start, stop)
        if how is None:
            return tensor.to(torch.float32) if tensor.is_floating_point() else tensor
        read = {
            p: read_block(r, start, stop) for p in ("scales", "biases", "global_scale") if (r := self.part(name, p))
        }
        return dequantize(tensor, read["scales"], read.get("biases"), global_scale=read.get("global_scale"), **how)

    def lazy(self, name: str) -> mx.array:
        """The whole tensor as MLX unpacks it, not computed yet: for a layout change that MLX must do."""
        how = self.how(name)
        array = float32(StoredTensor(self.refs[name]).lazy())
        if how is None:
            return array
        refs = {part: self.part(name, part) for part in ("scales", "biases", "global_scale")}
        parts = {part: float32(StoredTensor(ref).lazy()) for part, ref in refs.items() if ref}
        scales, biases = parts["scales"], parts.get("biases")
        if not is_linear(str(how["mode"])):  # no other way to float32: these modes unpack to bfloat16, exactly
            return mx.dequantize(array, scales, biases, dtype=mx.float32, **how)
        return mx.dequantize(array, scales, biases, **how)


def _natural(name: str) -> list[tuple[bool, str]]:
    """A key that orders numbers in names by value."""
    return [(part.isdigit(), part.zfill(8)) for part in name.split(".")]


class StoredLayout:
    """Stored weights mapped back to the checkpoint's names.

    A tensor that was merely renamed is read by rows; others go through ``invert`` together with those that
    share a checkpoint tensor with them.

    Args:
        stored: The output's tensors.
        invert: mlx-lm's tensors to the checkpoint's.
        tensors: The checkpoint's tensors.
        bounded: Let MLX unpack what goes through ``invert``, lazily, and refuse what is too large for it; otherwise
            torch unpacks everything.

    Raises:
        NotInvertible: The layout cannot be inverted, or not in bounded memory.
    """

    def __init__(
        self, stored: StoredWeights, invert: Invert, tensors: Mapping[str, TensorRef], *, bounded: bool
    ) -> None:
        self.stored = stored
        self.tensors = tensors
        self.stacked: dict[str, tuple[str, int]] = {}  # checkpoint name -> tensor of the output, index in it
        self.invert = invert
        self.bounded = bounded
        self.renamed: dict[str, str] = {}
        self._group: dict[
            str, tuple[str, ...]
        ] = {}  # checkpoint name -> names of the output that are inverted together
        self._recent: OrderedDict[tuple[str, ...], dict[str, mx.array]] = OrderedDict()
        self._lock = threading.Lock()
        self._find_groups()
        for names in dict.fromkeys(self._group.values()) if bounded else ():
            if sum(prod(stored.shape(name)) * 4 for name in names) > GROUP_BYTES and not self._unstack(names):
                raise NotInvertible(f"{names[0]} is more than a rename, and too large to rearrange in bounded memory")
        self._levels = {
            k: v for names in dict.fromkeys(self._group.values()) for k, v in self._levels_of(names).items()
        }

    def _find_groups(self) -> None:
        """``invert`` hands back the very array where a name is all that changes; else it names what it touches."""
        members: dict[str, list[str]] = {}
        for name in self.stored.names:
            marker = mx.broadcast_to(mx.array(0.0), self.stored.shape(name))
            found = self.invert({name: marker})
            if len(found) == 1 and next(iter(found.values())) is marker:
                self.renamed[next(iter(found))] = name
                continue
            joined, touched = [name], list(found)
            for group in {id(members[key]): members[key] for key in found if key in members}.values():
                joined += group
                touched += [key for key, value in members.items() if value is group]
            members.update(dict.fromkeys(touched, joined))
        self._group = {key: tuple(group) for key, group in members.items()}

    def _unstack(self, names: tuple[str, ...]) -> bool:
        """Whether a large tensor is a stack of checkpoint tensors, one an index: then each is read alone.

        Their names tell the order (experts are numbered). Values must bear it out, or it is not assumed.
        """
        parts = sorted((key for key, group in self._group.items() if group == names), key=_natural)
        shape = self.stored.shape(names[0])
        if len(names) != 1 or len(parts) != shape[0] or any(self.tensors[p].shape != shape[1:] for p in parts):
            return False
        bound = ROW_FACTOR * STORED_WEIGHT_BOUND[level_name(self.stored.level(names[0]) or 2)]
        agree = 0
        for index in sorted({0, len(parts) // 2, len(parts) - 1}):
            original = read_block(self.tensors[parts[index]], 0, min(16, shape[1])).to(torch.float32)
            stored = self.stored.rows(names[0], index, index + 1)[0][: len(original)]
            agree += bool((stored - original).norm() <= bound * original.norm())
        if not agree:
            return False
        self.stacked.update({part: (names[0], index) for index, part in enumerate(parts)})
        self._group = {key: group for key, group in self._group.items() if group != names}
        return True

    def __iter__(self) -> Iterator[str]:
        return iter([*self.renamed, *self.stacked, *self._group])

    def __contains__(self, name: object) -> bool:
        return name in self.renamed or name in self.stacked or name in self._group

    def stored_names(self, name: str) -> tuple[str, ...]:
        """The output's tensors that hold a checkpoint tensor."""
        if name in self.stacked:
            return (self.stacked[name][0],)
        return (self.renamed[name],) if name in self.renamed else self._group[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Dimensions of a tensor under its checkpoint name."""
        if name in self.stacked:
            return self.stored.shape(self.stacked[name][0])[1:]
        renamed = self.renamed.get(name)
        return self.stored.shape(renamed) if renamed else tuple(self._array(name).shape)

    def level(self, name: str) -> int:
        """Lowest level that holds its values; 0 unquantized, -1 unquantized and stored shifted by a constant."""
        if name in self.stacked:
            return self.stored.level(self.stacked[name][0])
        renamed = self.renamed.get(name)
        return self.stored.level(renamed) if renamed else self._levels[name]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows along axis 0, float32."""
        if name in self.stacked:
            whole, index = self.stacked[name]
            return self.stored.rows(whole, index, index + 1)[0][start:stop]
        renamed = self.renamed.get(name)
        if renamed:
            return self.stored.rows(renamed, start, stop)
        array = np.asarray(self._array(name))
        # A copy, of these rows only: what is compared is also worked on in place.
        return torch.from_numpy(np.array(array[start:stop] if array.ndim else array))

    def _array(self, name: str) -> mx.array:
        """A tensor that is more than a rename: those of a few groups, evaluated together, are kept."""
        names = self._group[name]
        with self._lock:
            return self._evaluated(names)[name]

    def _evaluated(self, names: tuple[str, ...]) -> dict[str, mx.array]:
        if names not in self._recent:
            read = self.stored.lazy if self.bounded else (lambda n: mx.array(self.stored.rows(n).numpy()))
            arrays = self.invert({n: read(n) for n in names})
            mx.eval(arrays)
            self._recent[names] = arrays
            while len(self._recent) > _RECENT:
                self._recent.popitem(last=False)
            mx.clear_cache()
        self._recent.move_to_end(names)
        return self._recent[names]

    def _levels_of(self, names: tuple[str, ...]) -> dict[str, int]:
        """``invert`` moves, scales and shifts values, so constants sent through it arrive where weights would."""

        def sent(value: Callable[[str], float]) -> dict[str, mx.array]:
            return self.invert({n: mx.broadcast_to(mx.array(value(n)), self.stored.shape(n)) for n in names})

        zeros, ones = sent(lambda _: 0.0), sent(lambda _: 1.0)
        marked = sent(lambda n: float(self.stored.level(n)))
        levels = {}
        for name, array in marked.items():
            origin = zeros[name].astype(mx.float32)
            found = mx.round((array - origin) / (ones[name] - origin))
            bounds = np.array(mx.stack([found.min(), found.max(), mx.abs(origin).max()]))
            low, high, shift = bounds.tolist()
            levels[name] = (round(low) or round(high)) or (-1 if shift else 0)
        return levels

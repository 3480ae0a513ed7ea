"""What a module holds between two calls, in attributes and buffers, and which of it a call has changed.

torch.export keeps what a forward writes to buffers and takes every other attribute for a constant. So a change of one
is the place to look again: many are harmless (a last attention map, a table that is made when it is first needed).
"""

from __future__ import annotations

import hashlib
import io
import pickle
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["HeldState", "StateChange"]

_SHARED = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)  # no copy of a module has its own


@dataclass(frozen=True)
class StateChange:
    """What differs between two states of a module.

    Attributes:
        attributes: Paths of plain attributes.
        kept: Paths of buffers and parameters, which a port writes as the original does.
    """

    attributes: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.attributes or self.kept)


class HeldState:
    """What a module and its parts hold now, as one digest for each attribute, buffer and parameter."""

    def __init__(self, module: torch.nn.Module) -> None:
        """Look at ``module``; nothing of it is changed."""
        self._references: list[Any] = []  # what is told by its id stays alive, or another could have its id
        self._attributes: dict[str, bytes] = {}
        self._kept: dict[str, bytes] = {}
        with torch._C.DisableTorchFunctionSubclass():  # else a weight that is read when it is used would be read
            for path, part in module.named_modules():
                prefix = f"{path}." if path else ""
                for name, value in vars(part).items():
                    if name in ("_parameters", "_buffers"):
                        self._kept.update({f"{prefix}{key}": self._digest(item) for key, item in value.items()})
                    else:
                        self._attributes[f"{prefix}{name}"] = self._digest(value)

    def change_since(self, earlier: HeldState) -> StateChange:
        """What is not as it was."""
        return StateChange(_differing(earlier._attributes, self._attributes), _differing(earlier._kept, self._kept))

    def _digest(self, value: Any) -> bytes:
        sink = _Sink()
        try:
            _Pickler(sink, self._references).dump(value)
        except Exception:  # nested too deep, changed by another thread: what cannot be told may have changed
            return str(id(self)).encode()
        return sink.hash.digest()


def _differing(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> tuple[str, ...]:
    return tuple(name for name in {**before, **after} if before.get(name) != after.get(name))


class _Sink(io.RawIOBase):
    """A file that keeps a hash of what is written to it."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b()

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return memoryview(data).nbytes


class _Pickler(pickle.Pickler):
    """Sees what ``copy.deepcopy`` copies, by the same protocol: the state that a copy of the module has for itself."""

    def __init__(self, file: _Sink, references: list[Any]) -> None:
        super().__init__(file, protocol=4)
        self._references = references

    def persistent_id(self, value: Any) -> Any:
        """Tensors by their values; parts of the tree, which are looked at by themselves, and what is shared by id."""
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        return self._identity(value) if isinstance(value, (torch.nn.Module, *_SHARED)) else None

    def reducer_override(self, value: Any) -> Any:
        """What has no state to look at (a lock, a file, a generator) by its id, as copies share it."""
        try:
            value.__reduce_ex__(4)
        except Exception:
            return _identified, (self._identity(value),)
        return NotImplemented

    def _identity(self, value: Any, *more: Any) -> tuple[Any, ...]:
        self._references.append(value)
        return (type(value).__name__, id(value), *more)

    def _tensor(self, tensor: torch.Tensor) -> tuple[Any, ...]:
        plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.is_quantized:  # of a parameter, which may be large, what is written to it counts
            return self._identity(tensor, None if tensor.is_inference() else tensor._version)
        values = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
        digest = hashlib.blake2b(memoryview(values.numpy())).hexdigest()
        return (str(tensor.dtype), tuple(tensor.shape), digest)


def _identified(*_: Any) -> None:
    """Stands in a pickle for what has no state; nothing reads these pickles."""

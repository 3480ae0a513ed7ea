"""A model in MLX without its weights in memory: leaf modules that read blocks of rows where they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from mlxport.source import read_rows
from mlxport.source.safetensors_file import read_safetensors
from mlxport.transform import float32, to_mx
from mlxport.types import TensorRef

__all__ = ["Tensor", "Written", "lazy_array", "output_refs", "read_block", "stream", "stream_tensors"]

BLOCK_BYTES = 48 << 20  # of float32 rows alive at a time
SMALL_BYTES = 4 << 20  # parameters of other modules up to this size stay once they are read


def output_refs(folder: Path) -> dict[str, TensorRef]:
    """Where each tensor of the output lies, from the headers of its files."""
    files = sorted(Path(folder).glob("model*.safetensors"))
    return {name: ref for path in files for name, ref in read_safetensors(path).items()}


def read_block(ref: TensorRef, start: int, stop: int) -> mx.array:
    """Rows of one tensor; floating ones as float32, packed ones and codes as they are."""
    data = to_mx(read_rows(ref, start, stop), ref, (stop - start, *ref.shape[1:]))
    return data.astype(mx.float32) if ref.dtype in ("F16", "BF16") else data


class Tensor(Protocol):
    """A tensor that is not in memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""

    @property
    def nbytes(self) -> int:
        """Bytes of its elements, as it is stored or computed."""

    def rows(self, start: int, stop: int) -> mx.array:
        """Rows of it; floating ones as float32, packed ones and codes as they are."""

    def lazy(self) -> mx.array:
        """The whole of it, unevaluated; floating ones as float32."""


@dataclass(frozen=True)
class Written:
    """A tensor of a written file."""

    ref: TensorRef

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""
        return self.ref.shape

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.ref.nbytes

    def rows(self, start: int, stop: int) -> mx.array:
        """``read_block``."""
        return read_block(self.ref, start, stop)

    def lazy(self) -> mx.array:
        """``lazy_array``."""
        return lazy_array(self.ref)


class _Rows:
    """The weight of one module as blocks of rows, plain or packed."""

    def __init__(self, tensors: Mapping[str, Tensor], how: Mapping[str, Any] | None) -> None:
        self.tensors = tensors
        self.how = how
        self.count = tensors["weight"].shape[0]
        row = 4 * int(np.prod(tensors["weight"].shape[1:])) * (32 // how["bits"] if how else 1)
        self.step = max(1, BLOCK_BYTES // row)

    def blocks(self) -> Iterator[dict[str, mx.array]]:
        for start in range(0, self.count, self.step):
            yield self.read(start, min(start + self.step, self.count))

    def read(self, start: int, stop: int) -> dict[str, mx.array]:
        return {part: tensor.rows(start, stop) for part, tensor in self.tensors.items()}

    def product(self, x: mx.array, block: Mapping[str, mx.array]) -> mx.array:
        """``x`` by the transpose of a block, as MLX's own layer computes it."""
        if self.how is None:
            return x @ block["weight"].swapaxes(-1, -2)
        parts: Any = {"scales": block["scales"], "biases": block.get("biases")}
        return mx.quantized_matmul(x, block["weight"], transpose=True, **parts, **self.how)

    def matmul(self, x: mx.array) -> mx.array:
        parts = []
        for block in self.blocks():
            parts.append(self.product(x, block))
            mx.eval(parts[-1])
        return mx.concatenate(parts, axis=-1)

    def gather(self, ids: mx.array) -> mx.array:
        used, place = np.unique(np.array(ids), return_inverse=True)
        rows = [self.read(int(row), int(row) + 1) for row in used]
        found = {part: mx.concatenate([row[part] for row in rows]) for part in self.tensors}
        if self.how is not None:
            weight = mx.dequantize(found["weight"], found["scales"], found.get("biases"), **self.how)
        else:
            weight = found["weight"]
        return weight.astype(mx.float32)[mx.array(place.reshape(ids.shape))]

    def experts(self, x: mx.array, indices: mx.array) -> mx.array:
        """What ``gather_mm`` computes: each batch entry of ``x`` by the matrix that its index names."""
        batch = np.broadcast_shapes(tuple(x.shape[:-2]), tuple(indices.shape))
        flat = mx.broadcast_to(x, (*batch, *x.shape[-2:])).reshape(-1, *x.shape[-2:])
        chosen = np.broadcast_to(np.array(indices), batch).reshape(-1)
        order = np.argsort(chosen, kind="stable")
        parts = []
        for expert in np.unique(chosen):
            block = {part: value[0] for part, value in self.read(int(expert), int(expert) + 1).items()}
            parts.append(self.product(flat[mx.array(np.flatnonzero(chosen == expert))], block))
            mx.eval(parts[-1])
        result = mx.concatenate(parts)[mx.array(np.argsort(order))]
        return result.reshape(*batch, *result.shape[-2:])


def _bias(module: Any, output: mx.array) -> mx.array:
    return output + module["bias"] if "bias" in module else output


class _Streamed:
    """Mixed into a leaf class: the same call, its weight read by ``_rows`` and its output evaluated at once."""

    def _done(self, output: mx.array) -> mx.array:
        mx.eval(output)
        mx.clear_cache()
        return output


class _Linear(_Streamed, nn.Linear):  # type: ignore[misc]
    def __call__(self, x: mx.array) -> mx.array:
        return self._done(_bias(self, self._rows.matmul(x)))


class _QuantizedLinear(_Streamed, nn.QuantizedLinear):  # type: ignore[misc]
    def __call__(self, x: mx.array) -> mx.array:
        return self._done(_bias(self, self._rows.matmul(x)))


class _Embedding(_Streamed, nn.Embedding):  # type: ignore[misc]
    def __call__(self, x: mx.array) -> mx.array:
        return self._done(self._rows.gather(x))

    def as_linear(self, x: mx.array) -> mx.array:
        return self._done(self._rows.matmul(x))


class _QuantizedEmbedding(_Streamed, nn.QuantizedEmbedding):  # type: ignore[misc]
    def __call__(self, x: mx.array) -> mx.array:
        return self._done(self._rows.gather(x))

    def as_linear(self, x: mx.array) -> mx.array:
        return self._done(self._rows.matmul(x))


def _expert_bias(module: Any, output: mx.array, indices: mx.array) -> mx.array:
    return output + mx.expand_dims(module["bias"][indices], -2) if "bias" in module else output


class _SwitchLinear(_Streamed, SwitchLinear):  # type: ignore[misc]
    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        return self._done(_expert_bias(self, self._rows.experts(x, indices), indices))


class _QuantizedSwitchLinear(_Streamed, QuantizedSwitchLinear):  # type: ignore[misc]
    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        return self._done(_expert_bias(self, self._rows.experts(x, indices), indices))


_STREAMED: Mapping[type, type] = {
    nn.Linear: _Linear,
    nn.QuantizedLinear: _QuantizedLinear,
    nn.Embedding: _Embedding,
    nn.QuantizedEmbedding: _QuantizedEmbedding,
    SwitchLinear: _SwitchLinear,
    QuantizedSwitchLinear: _QuantizedSwitchLinear,
}


def _other(cls: type, tensors: Mapping[str, Tensor]) -> type:
    """A subclass for any other module with large parameters: evaluate its output, then put lazy arrays back."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = cls.__call__(self, *args, **kwargs)  # type: ignore[operator]
        mx.eval([array for _, array in tree_flatten(result) if isinstance(array, mx.array)])
        for name, tensor in tensors.items():
            self[name] = tensor.lazy()
        mx.clear_cache()
        return result

    return type(cls.__name__, (cls,), {"__call__": call})


def lazy_array(ref: TensorRef) -> mx.array:
    """A whole tensor, read when it is needed; floating ones as float32."""
    files: Any = mx.load(str(ref.path))
    array: mx.array = files[ref.name]
    return float32(array)


def stream(model: Any, folder: Path) -> list[str]:
    """``stream_tensors`` with the tensors of a written folder."""
    return stream_tensors(model, {name: Written(ref) for name, ref in output_refs(folder).items()})


def stream_tensors(model: Any, tensors: Mapping[str, Tensor]) -> list[str]:
    """Make every leaf of ``model`` read its weight where it is used, in float32.

    Args:
        model: mlx-lm's model; what its parameters hold is read only where a module stays in memory.
        tensors: By the names of its parameters.

    Returns:
        Paths of modules with large parameters that stay in memory once read.
    """
    kept = []
    model.set_dtype(mx.float32)
    for path, module in model.named_modules():
        own = {name: tensors[f"{path}.{name}"] for name in module if f"{path}.{name}" in tensors}
        if not own or any(tuple(module[name].shape) != tensor.shape for name, tensor in own.items()):
            if sum(v.nbytes for v in module.values() if isinstance(v, mx.array)) > SMALL_BYTES:
                kept.append(path)
            continue
        if type(module) in _STREAMED and not module.get("global_scale"):
            parts = {name: tensor for name, tensor in own.items() if name in ("weight", "scales", "biases")}
            how = None
            if "scales" in parts:
                how = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
            module.__class__ = _STREAMED[type(module)]
            object.__setattr__(module, "_rows", _Rows(parts, how))
        elif sum(tensor.nbytes for tensor in own.values()) > SMALL_BYTES and callable(module):
            module.__class__ = _other(type(module), own)
    return kept

"""The layout of models that no runtime has: MLX source written from the PyTorch model, with its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import torch
from mlx.utils import tree_flatten

from mlxport.errors import WeightsError
from mlxport.graph.build import Port
from mlxport.graph.capture.examples import Example
from mlxport.graph.write.execute_source import execute
from mlxport.graph.write.port_weights import fill, from_torch, port_weights
from mlxport.layouts.base import PORT_FILE
from mlxport.layouts.conversion import Conversion, make_conversion
from mlxport.layouts.generated.example_files import finish_example, write_inputs, write_outputs
from mlxport.layouts.quantizing import Built, quantize
from mlxport.quant import QuantRequest
from mlxport.transform import Pipeline, lazy_arrays, trace
from mlxport.types import Checkpoint, TensorRef

# From the arrays of a checkpoint, by their names there, to one array of the original module.
Map = Callable[[Mapping[str, mx.array]], mx.array]

__all__ = [
    "TORCH_DTYPES",
    "ComparedPort",
    "GeneratedConversion",
    "Map",
    "MissingWeights",
    "assemble",
    "final_config",
    "port_config",
    "port_pipeline",
    "weights_of_port",
]

TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SMALL = 256 << 20  # bytes of weights that are run for nothing but the outputs of the example


class MissingWeights(WeightsError):
    """A parameter of the module is not in the checkpoint."""


class ComparedPort(Protocol):
    """What a port is compared with; attributes as of ``GeneratedConversion``."""

    @property
    def port(self) -> Port: ...  # noqa: D102
    @property
    def example(self) -> Example: ...  # noqa: D102
    @property
    def original(self) -> Callable[[], Any]: ...  # noqa: D102
    @property
    def unquantized(self) -> Callable[[], dict[str, mx.array]]: ...  # noqa: D102
    @property
    def weights_of(self) -> Checkpoint | None: ...  # noqa: D102


@dataclass(frozen=True)
class GeneratedConversion(Conversion):
    """A conversion whose output brings its own code.

    Attributes:
        port: The emitted source and what it was made from.
        example: Inputs that it was captured with.
        original: Makes the original, in eval mode.
        unquantized: Makes the port's weights, by path, as they are before any is quantized; none is read before it is
            needed.
        weights_of: What the original's weights are read from where it is made without them.
        mlxfn: Whether ``model.mlxfn`` is to be written.
    """

    port: Port = field(kw_only=True)
    example: Example = field(kw_only=True)
    original: Callable[[], Any] = field(kw_only=True, repr=False)
    unquantized: Callable[[], dict[str, mx.array]] = field(kw_only=True, repr=False)
    weights_of: Checkpoint | None = field(default=None, kw_only=True)
    mlxfn: bool = field(default=False, kw_only=True)

    def write_files(self, folder: Path) -> set[str]:
        """Its source, and the inputs of one call."""
        (folder / PORT_FILE).write_text(self.port.source, encoding="utf-8")
        return {PORT_FILE, write_inputs(folder, self.port.captured.signature, self.example)}

    def keep_outputs(self, folder: Path, example: Example, outputs: Mapping[str, mx.array]) -> None:
        """Write the outputs of the example, where these are its own."""
        if example is self.example:
            write_outputs(folder, outputs)

    def finish_files(self, folder: Path) -> tuple[set[str], dict[str, Any]]:
        """The outputs of the call where a verification has not left them, and a file for C++ and Swift."""
        small = sum(tensor.nbytes for tensor in self.tensors()) <= _SMALL
        return finish_example(folder, self.port.captured.signature, self.example, small=small, mlxfn=self.mlxfn)


def assemble(
    port: Port,
    refs: Mapping[str, TensorRef],
    maps: Mapping[str, Map],
    example: Example,
    original: Callable[[], Any],
    *,
    dtype: str,
    quant: QuantRequest | None = None,
    config: Mapping[str, Any] | None = None,
    mlxfn: bool = False,
    weights_of: Checkpoint | None = None,
) -> GeneratedConversion:
    """Trace how the weights of a port are made from the tensors of a checkpoint.

    Args:
        port: What was emitted.
        refs: Tensors of the checkpoint.
        maps: Name in the original module to how it is made of them; what is missing must be real in the capture.
        example: Inputs that it was captured with.
        original: See ``GeneratedConversion``.
        dtype: Name of the port's main floating dtype, for the record.
        quant: What to quantize, or None.
        config: The original's config.json.
        mlxfn: See ``GeneratedConversion``.
        weights_of: See ``GeneratedConversion``.

    Raises:
        MissingWeights: A parameter of the module is not in the checkpoint.
        QuantizationError: The setting cannot apply to this model.
    """
    built = Built({})
    program = trace(port_pipeline(port, maps, port_config(port, config or {}))(quant, built), refs)
    made = make_conversion(program, built, dtype, quant, list(port.notes), final_config)
    return GeneratedConversion(
        **vars(made), port=port, example=example, original=original,
        unquantized=lambda: weights_of_port(port, lazy_arrays(refs), maps), weights_of=weights_of, mlxfn=mlxfn,
    )  # fmt: skip


def port_config(port: Port, config: Mapping[str, Any]) -> dict[str, Any]:
    """The original's config with what a port adds."""
    return {"model_type": port.model_type, **config, **port.fields, "model_file": PORT_FILE}


def port_pipeline(
    port: Port, maps: Mapping[str, Map], config: Mapping[str, Any]
) -> Callable[[QuantRequest | None, Built], Pipeline]:
    """What makes a port's weights, quantized as asked: see ``ModelSource``; arguments as of ``assemble``."""
    namespace = execute(port.source)

    def make(quant: QuantRequest | None, built: Built) -> Pipeline:
        def pipeline(arrays: dict[str, mx.array]) -> dict[str, mx.array]:
            weights = weights_of_port(port, arrays, maps)
            model = fill(namespace.Model(namespace.ModelArgs()), weights)
            built.config = dict(config)
            built.parameters = sum(array.size for array in weights.values())
            if quant is not None:
                built.config = quantize(model, built.config, quant, built)
            built.model = model
            return dict(tree_flatten(model.parameters()))

        return pipeline

    return make


def weights_of_port(port: Port, arrays: Mapping[str, mx.array], maps: Mapping[str, Map]) -> dict[str, mx.array]:
    """The port's parameters by path."""
    state: dict[str, mx.array] = {}

    def original(name: str) -> mx.array:
        if name not in state:
            state[name] = _original(port, name, arrays, maps)
        return state[name]

    return port_weights(port.weights, port.folds, original)


def _original(port: Port, name: str, arrays: Mapping[str, mx.array], maps: Mapping[str, Map]) -> mx.array:
    tensor = port.captured.state[name]
    if name not in maps:
        if name in port.captured.trainable and maps:
            raise MissingWeights(
                f"the checkpoint has no tensor for {name}", hint="the weights must be those of the class that is ported"
            )
        return from_torch(tensor)
    array = maps[name](arrays)
    wanted = from_torch(tensor.new_empty(0)).dtype
    if tuple(array.shape) != tuple(tensor.shape):
        raise WeightsError(
            f"{name} has shape {tuple(array.shape)} in the checkpoint, the model expects {tuple(tensor.shape)}",
            hint="check that config.json belongs to these weights",
        )
    return array if array.dtype == wanted else array.astype(wanted)


def final_config(built: Built, dtype: str, quantized: bool) -> dict[str, Any]:
    """config.json of a port: that of the original with the port's fields, its dtype and how it is quantized."""
    config = {key: value for key, value in built.config.items() if key not in ("_name_or_path", "torch_dtype")}
    config["dtype"] = dtype
    if not quantized:
        config.pop("quantization_config", None)
    elif "quantization" in config:
        config["quantization_config"] = config["quantization"]
    return dict(sorted(config.items()))

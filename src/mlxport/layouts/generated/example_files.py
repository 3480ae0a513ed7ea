"""What a port's folder holds beside source and weights: one call's inputs and outputs, and a file for C++ and Swift."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import torch

from mlxport.errors import UnsupportedError, VerificationError
from mlxport.graph.capture.examples import Example, leaf_names, output_arrays
from mlxport.graph.write.port_weights import from_torch, to_mlx
from mlxport.layouts.generated.loading import load_port

__all__ = ["export_function", "finish_example", "write_inputs", "write_outputs"]

INPUTS, OUTPUTS, MLXFN = "example_inputs.safetensors", "example_outputs.safetensors", "model.mlxfn"


def _tensors(signature: Any, example: Example) -> dict[str, torch.Tensor]:
    leaves = leaf_names(signature, example)
    return {name: leaf for name, leaf in leaves.items() if isinstance(leaf, torch.Tensor)}


def write_inputs(folder: Path, signature: Any, example: Example) -> str:
    """Write the tensors of the example under the names of the original's parameters; the file's name."""
    inputs = {name: from_torch(tensor) for name, tensor in _tensors(signature, example).items()}
    mx.save_safetensors(str(folder / INPUTS), inputs, {"format": "mlx"})
    return INPUTS


def write_outputs(folder: Path, outputs: Mapping[str, mx.array]) -> None:
    """Write what the port gives for the example."""
    mx.save_safetensors(str(folder / OUTPUTS), dict(outputs), {"format": "mlx"})


def finish_example(
    folder: Path, signature: Any, example: Example, *, small: bool, mlxfn: bool
) -> tuple[set[str], dict[str, Any]]:
    """Write the example's outputs where they are missing and the model is small: running one takes it whole.

    Args:
        folder: Of the finished port.
        signature: The original's.
        example: Inputs that it was captured with.
        small: Whether it may be run for its outputs alone.
        mlxfn: Write ``model.mlxfn`` too.

    Returns:
        Names of the files, and for the config in which order ``model.mlxfn`` takes and gives arrays.
    """
    made = (folder / OUTPUTS).exists()
    if not mlxfn and (made or not small):
        return ({OUTPUTS} if made else set()), {}
    model = load_port(folder)
    if not made:
        write_outputs(folder, output_arrays(model(*to_mlx(example.args), **to_mlx(example.kwargs))))
    if not mlxfn:
        return {OUTPUTS}, {}
    outputs = export_function(folder / MLXFN, model, example)
    return {OUTPUTS, MLXFN}, {"mlxfn": {"inputs": [*_tensors(signature, example)], "outputs": outputs}}


def export_function(path: Path, model: nn.Module, example: Example) -> list[str]:
    """Write a file (``mx.export_function``) for C++ and Swift, and check it against the model.

    The function takes the tensors of the example in the order of the original's parameters, gives the outputs in the
    order of the original's, and has the example's sizes.

    Returns:
        The outputs' names, in order.

    Raises:
        UnsupportedError: MLX cannot export one of its primitives.
        VerificationError: The file gives other outputs than the model.
    """
    from torch.utils import _pytree as pytree

    mx.eval(model.parameters())  # a file that is still to be read cannot be exported
    leaves, structure = pytree.tree_flatten((to_mlx(example.args), to_mlx(example.kwargs)))
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, mx.array)]
    arrays = [leaves[index] for index in places]

    def named(*given: mx.array) -> dict[str, mx.array]:
        filled = list(leaves)
        for index, value in zip(places, given, strict=True):
            filled[index] = value
        args, kwargs = pytree.tree_unflatten(filled, structure)
        return output_arrays(model(*args, **kwargs))

    try:
        mx.export_function(str(path), lambda *given: tuple(named(*given).values()), *arrays)
    except (ValueError, RuntimeError) as error:
        path.unlink(missing_ok=True)
        raise UnsupportedError(
            f"--mlxfn: MLX cannot export this model: {error}", hint="port it without --mlxfn"
        ) from error
    imported: Any = mx.import_function(str(path))
    wanted = named(*arrays)
    for (name, theirs), ours in zip(wanted.items(), imported(*arrays), strict=True):
        if ours.shape != theirs.shape or not bool(mx.allclose(ours, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)):
            raise VerificationError(
                f"output {name} of {path.name} differs from the model's", hint="port it without --mlxfn"
            )
    return list(wanted)

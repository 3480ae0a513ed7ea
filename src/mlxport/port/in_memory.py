"""Port a PyTorch module to MLX in memory: capture, emit, load the weights, compare with the original."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from mlxport.errors import UsageError, VerificationError

if TYPE_CHECKING:
    import torch

    from mlxport.graph.build import Port
    from mlxport.graph.capture.examples import Example

__all__ = ["port"]


def port(
    module: torch.nn.Module,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: bool | Any = True,
    dynamic_shapes: str | None = None,
    fold_batchnorm: bool = False,
    verify: bool = True,
) -> nn.Module:
    """An ``mlx.nn.Module`` that computes what ``module`` computes, weights in it, called as the original is.

    Args:
        module: The PyTorch module, in eval mode; its weights are copied, and it is left as it is.
        args: Example inputs. A tuple or list holds the positional ones: torch tensors, nested structures of them, None,
            numbers and flags; what is not a tensor is fixed in the port. A tensor is the one argument, a dict holds
            keyword inputs (an argument that is itself a dict goes into a tuple).
        kwargs: Example keyword inputs.
        dynamic: True: sizes of the inputs may change wherever torch.export proves that they can; False: the example's
            sizes only; otherwise ``dynamic_shapes`` as ``torch.export.export`` takes them.
        dynamic_shapes: The free sizes said by hand, in the place of ``dynamic``: ``"x: B, 3, H*32, W*32; mask: B, L"``.
            A name is free, a number fixed, ``_`` as the module allows, as is what is not named.
        fold_batchnorm: Multiply eval-mode BatchNorm into the convolution before it.
        verify: Compare the outputs with the original's, on the example inputs and on inputs of other sizes.

    Returns:
        The port. ``port.source`` is the Python source that it runs, which needs nothing but mlx; ``port.sizes`` says of
        each input which sizes are free, in which range, and what fixes the others.

    Raises:
        UnsupportedError: for ops that have no lowering, all of them at once, with the lines that call them; for a
            module that torch.export cannot capture.
        UsageError: if ``args`` do not fit the module's forward.
        VerificationError: if an output differs from the original's.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UsageError("port needs PyTorch, which is not installed", hint="pip install 'mlxport[torch]'") from error

    from mlxport.graph.capture.examples import Example
    from mlxport.graph.capture.module_copies import hollow_copy
    from mlxport.graph.capture.unwrapping import check_module, unwrapped
    from mlxport.layouts.generated.emitting import emit
    from mlxport.layouts.generated.random_states import random_states_kept
    from mlxport.options.size_spec import asked_sizes

    check_module(module, "port")
    dynamic = asked_sizes(dynamic, dynamic_shapes)
    example = Example.given(*(args, kwargs) if kwargs is not None else (args,))
    with random_states_kept():
        original = unwrapped(hollow_copy(module))
        result = emit(hollow_copy(original), example, dynamic=dynamic, fold_batchnorm=fold_batchnorm, has_values=True)
        ported = _instance(result)
        if verify:
            _verify(original, ported, result, example)
    return ported


def _instance(result: Port) -> nn.Module:
    """Execute the source and fill the model with weights made from the captured module's tensors."""
    from mlxport.graph.write.execute_source import execute
    from mlxport.graph.write.port_weights import fill
    from mlxport.transform.cpu_experts import half_precision_experts

    half_precision_experts()
    namespace = execute(result.source)
    model: nn.Module = namespace.Model(namespace.ModelArgs())
    object.__setattr__(model, "source", result.source)
    object.__setattr__(model, "sizes", tuple(result.sizes))
    return fill(model, make_weights(result))


def make_weights(result: Port) -> dict[str, mx.array]:
    """The port's parameters by path, from the captured module's tensors."""
    from mlxport.graph.write.port_weights import from_torch, port_weights

    state = {name: from_torch(tensor) for name, tensor in result.captured.state.items()}
    return port_weights(result.weights, result.folds, state.__getitem__)


def _verify(module: torch.nn.Module, ported: nn.Module, result: Port, example: Example) -> None:
    from mlxport.graph.capture.examples import other_sizes
    from mlxport.layouts.generated.reference_module import OriginalCopies, compared_dtype
    from mlxport.parity.port_parity import verify_port

    report = verify_port(
        ported,
        OriginalCopies(module, example, result.captured.written()),
        [example],
        dtype=compared_dtype(module, example, (node.meta.get("val") for node in result.captured.graph.nodes)),
        others=lambda: other_sizes(result.captured),
    )
    if not report.passed:
        advice = report.hint or "please report it with the module"
        raise VerificationError(report.failure_message(), hint=f"{advice}; verify=False gives the port as it is")

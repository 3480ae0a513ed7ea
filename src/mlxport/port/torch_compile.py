"""``torch.compile(module, backend="mlxport")``: inference of a PyTorch module on MLX, through the port's op table."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from mlxport.errors import UnsupportedError
from mlxport.graph.capture.export import lowered_decompositions
from mlxport.graph.lower.one_function import MissingOps, compile_source, flat_source
from mlxport.graph.write.port_weights import from_torch

__all__ = ["backend"]

# Parameters keep their MLX copy until they are written to.
_parameters: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def backend(module: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Compile a graph of TorchDynamo; registered as the backend ``mlxport``.

    Args:
        module: The graph.
        example_inputs: Its inputs.

    Raises:
        UnsupportedError: An op has no lowering, or gradients are asked for.
    """
    from torch._dynamo.backends.common import aot_autograd

    compiled: Callable[..., Any] = aot_autograd(
        fw_compiler=_compile,
        inference_compiler=_compile,
        bw_compiler=_no_gradients,
        decompositions=lowered_decompositions(),
    )(module, example_inputs)
    return compiled


def _no_gradients(*_: Any) -> Any:
    raise UnsupportedError(
        'torch.compile(backend="mlxport") is for inference', hint="call the compiled module under torch.no_grad()"
    )


def _compile(module: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    _drop_checks(module.graph)
    try:
        source = flat_source(module.graph)
    except MissingOps as error:
        raise UnsupportedError(
            f"no MLX lowering for {error}",
            hint='say how MLX computes it: @mlxport.register_op("namespace::op") above a function on mx.arrays',
        ) from None
    (output,) = next(node for node in module.graph.nodes if node.op == "output").args
    dtypes = [
        node.meta["val"].dtype if isinstance(node, torch.fx.Node) and _is_tensor(node) else None for node in output
    ]

    @functools.cache
    def function() -> Callable[..., Any]:  # when it first runs: while it is compiled, tensors are fake
        found = {node.name: node.target for node in module.graph.nodes if node.op == "get_attr"}
        constants = {name: from_torch(operator.attrgetter(place)(module)) for name, place in found.items()}
        return compile_source(source, constants=constants)

    def run(*inputs: Any) -> list[Any]:
        results = function()(*(_to_mlx(item) for item in inputs))
        mx.eval([result for result in results if isinstance(result, mx.array)])
        return [_to_torch(result, dtype) for result, dtype in zip(results, dtypes, strict=True)]

    return run


def _drop_checks(graph: torch.fx.Graph) -> None:
    """Take out calls that only check whether a decomposition went well: MLX raises itself."""
    for node in list(graph.nodes):
        if (
            node.target is torch.ops.higher_order.with_effects
            and str(node.args[1]) == "aten._linalg_check_errors.default"
        ):
            for token in list(node.users):
                token.replace_all_uses_with(node.args[0])
                graph.erase_node(token)
            graph.erase_node(node)


def _is_tensor(node: torch.fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _to_mlx(item: Any) -> Any:
    """A tensor by DLPack; what is no tensor as it is."""
    if not isinstance(item, torch.Tensor):
        return item
    if isinstance(item, torch.nn.Parameter):
        known = _parameters.get(item)
        if known is None or known[0] != item._version:
            known = _parameters[item] = (item._version, from_torch(item))
        return known[1]
    item = item.detach()
    if item.dtype in (torch.float32, torch.float16, torch.int32, torch.int64) and item.is_contiguous() and item.numel():
        return mx.array(item)  # type: ignore[arg-type]  # MLX reads __dlpack__
    return from_torch(item)


def _to_torch(result: Any, dtype: torch.dtype | None) -> Any:
    if not isinstance(result, mx.array):
        return result
    if result.dtype == mx.bool_ or result.size == 0:
        return torch.tensor(result.tolist(), dtype=dtype).reshape(result.shape)
    tensor = torch.from_dlpack(result)  # type: ignore[attr-defined]
    return tensor if dtype is None or tensor.dtype is dtype else tensor.to(dtype)

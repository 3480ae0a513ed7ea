"""Convolutions and transposed convolutions. MLX has the channels last; weights are transposed where they are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxport.graph.lower.axes import brief, each
from mlxport.graph.lower.expr import Expr, most, mx, same_size, surely
from mlxport.graph.lower.helpers import conv as helper
from mlxport.graph.lower.ops.linear import is_integer
from mlxport.graph.lower.registry import call, channels_last, op, refuse

_FORWARD = {1: mx.conv1d, 2: mx.conv2d, 3: mx.conv3d}
_TRANSPOSED = {1: mx.conv_transpose1d, 2: mx.conv_transpose2d, 3: mx.conv_transpose3d}


def _options(groups: Any, **values: tuple[tuple[Any, ...], int]) -> dict[str, Any]:
    """Keyword arguments of a convolution without those that are at their defaults."""
    options = {
        name: brief(value)
        for name, (value, default) in values.items()
        if not all(same_size(item, default) for item in value)
    }
    return options | ({"groups": groups} if not same_size(groups, 1) else {})


def _last(weight: Expr) -> Expr:
    return weight.moveaxis(1, -1)


def _excess(padding: Any, dilation: Any, kernel: Any) -> Any:
    """By how much a padding is wider than a kernel reaches."""
    reach = dilation * (kernel - 1)
    return 0 if surely(padding <= reach) else most(padding - reach, 0)


def convolve(
    input: Expr,
    weight: Expr,
    bias: Expr | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: Any,
) -> Expr:
    """A convolution of a channels-last input, batched or not, with a weight in torch's layout."""
    rank = weight.ndim - 2
    stride, padding, dilation = (each(value, rank) for value in (stride, padding, dilation))
    batched = input.ndim == rank + 2
    x = input if batched else input[None]
    options = _options(groups, stride=(stride, 1), padding=(padding, 0), dilation=(dilation, 1))
    if is_integer(input):
        result = call(helper.integer_conv, x, _last(weight), **options)
    elif input.dtype == mx.complex64:
        result = call(helper.complex_conv, x, _last(weight), **options)
    elif rank == 3 and not same_size(groups, 1):
        result = call(helper.grouped_conv3d, x, _last(weight), **options)
    else:
        result = _FORWARD[rank](x, _last(weight), **options)
    if bias is not None:
        result = result + bias
    return result if batched else result[0]


def convolve_transposed(
    input: Expr,
    weight: Expr,
    bias: Expr | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: Any,
    dilation: Sequence[int],
) -> Expr:
    """A transposed convolution of a channels-last input, batched or not, with a weight in torch's layout."""
    rank = weight.ndim - 2
    stride, padding, output_padding, dilation = (
        each(value, rank) for value in (stride, padding, output_padding, dilation)
    )
    batched = input.ndim == rank + 2
    x = input if batched else input[None]
    # MLX pads the input by dilation * (kernel - 1) - padding: where that is negative, the rest is cut from the result.
    excess = [_excess(*item) for item in zip(padding, dilation, weight.shape[2:], strict=True)]
    padding = tuple(p - e for p, e in zip(padding, excess, strict=True))
    options = _options(
        groups, stride=(stride, 1), padding=(padding, 0), dilation=(dilation, 1), output_padding=(output_padding, 0)
    )
    if same_size(groups, 1):
        weight = weight.moveaxis(0, -1)
    else:
        weight = call(helper.grouped_transposed_weight, weight, groups)
    if is_integer(input):
        result = call(helper.integer_conv_transpose, x, weight, **options)
    elif input.dtype == mx.complex64:
        result = call(helper.complex_conv_transpose, x, weight, **options)
    elif rank == 3 and not same_size(groups, 1):
        result = call(helper.grouped_conv_transpose3d, x, weight, **options)
    else:
        result = _TRANSPOSED[rank](x, weight, **options)
    if not all(same_size(e, 0) for e in excess):
        sizes = result.shape[1:-1]
        cuts = [slice(None) if same_size(e, 0) else slice(e, n - e) for e, n in zip(excess, sizes, strict=True)]
        result = result[(slice(None), *cuts)]
    if bias is not None:
        result = result + bias
    return result if batched else result[0]


def _register(rank: int) -> None:
    one = (1,)

    def conv(
        input: Expr,
        weight: Expr,
        bias: Expr | None = None,
        stride: Sequence[int] = one,
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = one,
        groups: Any = 1,
    ) -> Expr:
        return convolve(input, weight, bias, stride, padding, dilation, groups)

    def conv_padding(
        input: Expr,
        weight: Expr,
        bias: Expr | None = None,
        stride: Sequence[int] = one,
        padding: str = "valid",
        dilation: Sequence[int] = one,
        groups: Any = 1,
    ) -> Expr:
        if padding == "valid":
            return convolve(input, weight, bias, stride, (0,), dilation, groups)
        spread = [d * (k - 1) for d, k in zip(each(dilation, rank), weight.shape[2:], strict=True)]
        if all(surely(total % 2 == 0) for total in spread):
            return convolve(input, weight, bias, stride, [total // 2 for total in spread], dilation, groups)
        # An even kernel: torch pads one more at the end.
        widths = [(total // 2, total - total // 2) for total in spread]
        lead = [(0, 0)] * (input.ndim - rank - 1)
        return convolve(mx.pad(input, [*lead, *widths, (0, 0)]), weight, bias, stride, (0,), dilation, groups)

    def conv_transpose(
        input: Expr,
        weight: Expr,
        bias: Expr | None = None,
        stride: Sequence[int] = one,
        padding: Sequence[int] = (0,),
        output_padding: Sequence[int] = (0,),
        groups: Any = 1,
        dilation: Sequence[int] = one,
    ) -> Expr:
        return convolve_transposed(input, weight, bias, stride, padding, output_padding, groups, dilation)

    channels_last(f"aten.conv{rank}d.default", spatial=rank)(conv)
    channels_last(f"aten.conv{rank}d.padding", spatial=rank)(conv_padding)
    channels_last(f"aten.conv_transpose{rank}d.{'default' if rank == 1 else 'input'}", spatial=rank)(conv_transpose)


for _rank in (1, 2, 3):
    _register(_rank)


@channels_last("aten.convolution.default", "aten._convolution.default")
def convolution(
    input: Expr,
    weight: Expr,
    bias: Expr | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: Any,
    benchmark: bool = False,
    deterministic: bool = False,
    cudnn_enabled: bool = False,
    allow_tf32: bool = False,
) -> Expr:
    """Either convolution; the last four arguments choose among CUDA's implementations."""
    refuse(input.ndim != weight.ndim, "an unbatched input")
    if transposed:
        return convolve_transposed(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return convolve(input, weight, bias, stride, padding, dilation, groups)


@op("aten.convolution_backward.default")
def convolution_backward(
    grad_output: Expr,
    input: Expr,
    weight: Expr,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: Any,
    output_mask: Sequence[bool],
) -> tuple[Expr | None, ...]:
    """Gradients of the input, the weight and the bias, those that ``output_mask`` asks for."""
    rank = weight.ndim - 2
    refuse(rank == 3 and not same_size(groups, 1), "gradients over three axes with groups")
    steps = (list(each(value, rank)) for value in (stride, padding, dilation))
    extra = list(each(output_padding, rank))
    both = call(helper.convolution_gradients, grad_output, input, weight, *steps, transposed, extra, groups)
    bias = grad_output.sum(axis=[0, *range(2, rank + 2)])
    return tuple(made if asked else None for made, asked in zip((both[0], both[1], bias), output_mask, strict=True))


@op("aten.conv_tbc.default")
def conv_tbc(self: Expr, weight: Expr, bias: Expr, pad: int = 0) -> Expr:
    """``conv1d`` over (time, batch, channels) with a weight of (width, channels in, channels out)."""
    options = {"padding": pad} if pad else {}
    return (mx.conv1d(self.swapaxes(0, 1), weight.transpose(2, 0, 1), **options) + bias).swapaxes(0, 1)

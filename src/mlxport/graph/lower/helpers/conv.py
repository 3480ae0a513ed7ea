"""Convolutions that MLX does not have; inputs (N, ..., C), weights (C_out, ..., C_in / groups)."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn


class GroupedConvTranspose(nn.Module):
    """A transposed convolution with groups, over one axis or two; weight (C_out, ..., C_in / groups)."""

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        groups,
        stride=1,
        padding=0,
        dilation=1,
        output_padding=0,
        bias=True,
    ):
        super().__init__()
        self.weight = mx.zeros((out_channels, *kernel_size, in_channels // groups))
        if bias:
            self.bias = mx.zeros((out_channels,))
        self.options = stride, padding, dilation, output_padding, groups

    def __call__(self, x):
        """Convolve x (N, ..., C)."""
        convolve = mx.conv_transpose1d if x.ndim == 3 else mx.conv_transpose2d
        y = convolve(x, self.weight, *self.options)
        return y + self.bias if "bias" in self else y


def grouped_conv3d(x, weight, stride=1, padding=0, dilation=1, groups=1):
    """conv3d with groups, one convolution for each."""
    parts = zip(mx.split(x, groups, axis=-1), mx.split(weight, groups, axis=0), strict=True)
    return mx.concatenate([mx.conv3d(part, w, stride, padding, dilation) for part, w in parts], axis=-1)


def grouped_conv_transpose3d(x, weight, stride=1, padding=0, dilation=1, output_padding=0, groups=1):
    """conv_transpose3d with groups, one convolution for each."""
    parts = zip(mx.split(x, groups, axis=-1), mx.split(weight, groups, axis=0), strict=True)
    results = [mx.conv_transpose3d(part, w, stride, padding, dilation, output_padding) for part, w in parts]
    return mx.concatenate(results, axis=-1)


def grouped_transposed_weight(weight, groups):
    """A transposed convolution's weight from torch's (C_in, C_out / groups, ...) to (C_out, ..., C_in / groups)."""
    inputs, outputs, *kernel = weight.shape
    weight = weight.reshape(groups, inputs // groups, outputs, *kernel).moveaxis(1, -1)
    return weight.reshape(groups * outputs, *kernel, inputs // groups)


def convolution_gradients(grad, x, weight, stride, padding, dilation, transposed, output_padding, groups):
    """Gradients of a convolution's input (N, C_in, ...) and weight, in torch's layout, from that of its output."""

    def convolve(x, weight):
        x = x.moveaxis(1, -1)
        if not transposed:
            y = mx.conv_general(x, weight.moveaxis(1, -1), stride, padding, dilation, groups=groups)
        else:
            inputs, outputs, *kernel = weight.shape
            weight = weight.reshape(groups, inputs // groups, outputs, *kernel).moveaxis(1, -1)
            weight = weight.reshape(groups * outputs, *kernel, inputs // groups)
            ends = [(d * (k - 1) - p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
            after = [end + extra for end, extra in zip(ends, output_padding, strict=True)]
            y = mx.conv_general(x, weight, 1, (ends, after), dilation, stride, groups, True)
        return y.moveaxis(-1, 1)

    return mx.vjp(convolve, [x, weight], [grad])[1]


def integer_conv(x, weight, stride=1, padding=0, dilation=1, groups=1):
    """A convolution in integers, which MLX's convolutions do not take: a sum over the positions of the kernel."""
    rank = x.ndim - 2
    stride, padding, dilation = ([v] * rank if isinstance(v, int) else v for v in (stride, padding, dilation))
    x = mx.pad(x, [(0, 0), *((p, p) for p in padding), (0, 0)])
    kernel = weight.shape[1:-1]
    sizes = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[1:-1], kernel, stride, dilation, strict=True)]
    outputs = weight.shape[0]
    x = x.reshape(*x.shape[:-1], groups, 1, weight.shape[-1])
    weight = weight.reshape(groups, outputs // groups, -1, weight.shape[-1])
    total = mx.zeros((x.shape[0], *sizes, groups, outputs // groups), dtype=x.dtype)
    for position in range(weight.shape[2]):
        window, rest = [], position
        for n, k, s, d in zip(reversed(sizes), reversed(kernel), reversed(stride), reversed(dilation), strict=True):
            start = rest % k * d
            window.insert(0, slice(start, start + (n - 1) * s + 1, s))
            rest //= k
        total = total + (x[(slice(None), *window)] * weight[:, :, position]).sum(axis=-1).astype(x.dtype)
    return total.reshape(*total.shape[:-2], outputs)


def integer_conv_transpose(x, weight, stride=1, padding=0, dilation=1, output_padding=0, groups=1):
    """A transposed convolution in integers: an integer convolution of the input with zeros between its elements."""
    rank = x.ndim - 2
    options = (stride, padding, dilation, output_padding)
    stride, padding, dilation, extra = ([v] * rank if isinstance(v, int) else v for v in options)
    kernel = weight.shape[1:-1]
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[1:-1], stride, strict=True)]
    spread = mx.zeros((x.shape[0], *sizes, x.shape[-1]), dtype=x.dtype)
    spread[(slice(None), *(slice(None, None, s) for s in stride))] = x
    before = [d * (k - 1) - p for k, p, d in zip(kernel, padding, dilation, strict=True)]
    after = [b + e for b, e in zip(before, extra, strict=True)]
    widths = [(max(b, 0), max(a, 0)) for b, a in zip(before, after, strict=True)]
    spread = mx.pad(spread, [(0, 0), *widths, (0, 0)])
    cut = [slice(max(-b, 0), n - max(-a, 0)) for b, a, n in zip(before, after, spread.shape[1:-1], strict=True)]
    flipped = weight[(slice(None), *(slice(None, None, -1) for _ in kernel))]
    return integer_conv(spread[(slice(None), *cut)], flipped, dilation=dilation, groups=groups)


def complex_conv(x, weight, stride=1, padding=0, dilation=1, groups=1):
    """A complex convolution from real ones."""

    def conv(a, b):
        if a.ndim == 5 and groups > 1:
            return grouped_conv3d(a, b, stride, padding, dilation, groups)
        return mx.conv_general(a, b, stride, padding, dilation, groups=groups)

    real = conv(x.real, weight.real) - conv(x.imag, weight.imag)
    return real + 1j * (conv(x.real, weight.imag) + conv(x.imag, weight.real))


def complex_conv_transpose(x, weight, stride=1, padding=0, dilation=1, output_padding=0, groups=1):
    """A complex transposed convolution from real ones."""

    def conv(a, b):
        if a.ndim == 5 and groups > 1:
            return grouped_conv_transpose3d(a, b, stride, padding, dilation, output_padding, groups)
        transpose = {3: mx.conv_transpose1d, 4: mx.conv_transpose2d, 5: mx.conv_transpose3d}[a.ndim]
        return transpose(a, b, stride, padding, dilation, output_padding, groups)

    real = conv(x.real, weight.real) - conv(x.imag, weight.imag)
    return real + 1j * (conv(x.real, weight.imag) + conv(x.imag, weight.real))

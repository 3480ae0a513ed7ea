"""Linear maps of which each row of an input goes through one."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn


class QuantizedSwitchLinear(nn.Module):
    """A quantized linear map for each expert."""

    def __init__(self, weight, bias=None, group_size=None, bits=None, mode="affine"):
        super().__init__()
        self.weight, self.scales, *biases = mx.quantize(weight, group_size, bits, mode=mode)
        if bias is not None:
            self.bias = bias
        if biases:
            self.biases = biases[0]
        self.group_size = weight.shape[-1] // self.scales.shape[-1]
        self.bits = 32 * self.weight.shape[-1] // weight.shape[-1]
        self.mode = mode
        self.freeze()

    def __call__(self, x, experts, sorted_indices=False):
        """Multiply each matrix of x by that of its expert."""
        settings = {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}
        arrays = self.weight, self.scales, self.get("biases")
        x = mx.gather_qmm(x, *arrays, rhs_indices=experts, sorted_indices=sorted_indices, **settings)
        return x + mx.expand_dims(self.bias[experts], -2) if "bias" in self else x


class SwitchLinear(nn.Module):
    """A linear map for each expert."""

    def __init__(self, input_dims, output_dims, num_experts, bias=True):
        super().__init__()
        self.weight = mx.zeros((num_experts, output_dims, input_dims))
        if bias:
            self.bias = mx.zeros((num_experts, output_dims))

    def __call__(self, x, experts, sorted_indices=False):
        """Multiply each matrix of x by that of its expert."""
        weight = self.weight.swapaxes(-2, -1)
        x = mx.gather_mm(x, weight, rhs_indices=experts, sorted_indices=sorted_indices)
        return x + mx.expand_dims(self.bias[experts], -2) if "bias" in self else x

    def to_quantized(self, group_size=None, bits=None, mode="affine"):
        """Return the quantized layer, for nn.quantize."""
        return QuantizedSwitchLinear(self.weight, self.get("bias"), group_size, bits, mode)


@mx.compile
def favoured(scores, bias, k):
    """Where the ``k`` largest of ``scores + bias`` are, in no order."""
    return mx.stop_gradient(mx.argpartition(-(scores + bias), kth=k - 1, axis=-1)[..., :k])


@mx.compile
def shares(x, least=0.0, scale=1.0):
    """``x`` by its sum over the last axis, to which ``least`` is added, times ``scale``."""
    return x / (x.sum(axis=-1, keepdims=True) + least) * scale


def rows_by_expert(x, experts):
    """Rows of ``x`` for the experts [..., k] of each; many are sorted, so that each expert's matrices are read once.

    Gives the rows [..., 1, width], the expert of each, and their order: None where they are not sorted.
    """
    if experts.size < 64:
        return x[..., None, None, :], experts, None
    order = mx.argsort(experts.flatten())
    rows = x.flatten(0, -2)[:, None]  # MLX multiplies many rows of an expert at once where these were taken so
    return rows[order // experts.shape[-1]], experts.flatten()[order], order


def rows_of_tokens(x, order, experts):
    """Rows [..., k, width] for ``experts`` [..., k], in the order before ``rows_by_expert``."""
    x = x.squeeze(-2)
    return x if order is None else x[mx.argsort(order)].reshape(*experts.shape, -1)

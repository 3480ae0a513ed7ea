from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxport.errors import UnsupportedError
from mlxport.parity.dequantize import dequantize, unpack
from mlxport.quant import MODES

SPECS = [(spec.mode, spec.bits, spec.group_size) for mode in MODES.values() for spec in mode.specs()]


def as_torch(array: mx.array) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


@pytest.mark.parametrize(("mode", "bits", "group"), SPECS, ids=lambda value: str(value))
@pytest.mark.parametrize("shape", [(3, 256), (2, 5, 128)], ids=["matrix", "experts"])
def test_unpacks_what_mlx_packs(mode, bits, group, shape):
    mx.random.seed(bits)
    weight = mx.random.normal(shape) * mx.exp(mx.random.normal((*shape[:-1], 1)))
    packed, scales, *biases = mx.quantize(weight, group, bits, mode=mode)
    how = {"mode": mode, "bits": bits, "group_size": group}
    expected = mx.dequantize(packed, scales, biases[0] if biases else None, dtype=mx.float32, **how)
    found = dequantize(as_torch(packed), as_torch(scales), as_torch(biases[0]) if biases else None, **how)
    assert found.shape == tuple(shape)
    np.testing.assert_allclose(found.numpy(), np.array(expected), rtol=1e-6, atol=1e-6)


def test_global_scale_of_nvfp4():
    mx.random.seed(0)
    weight = mx.random.normal((4, 64)) * 3
    largest = mx.abs(weight).max()
    packed, scales = mx.quantize(weight, 16, 4, mode="nvfp4", global_scale=largest)
    expected = mx.dequantize(packed, scales, mode="nvfp4", global_scale=largest, dtype=mx.float32)
    how = {"mode": "nvfp4", "bits": 4, "group_size": 16, "global_scale": as_torch(largest)}
    found = dequantize(as_torch(packed), as_torch(scales), None, **how)
    np.testing.assert_allclose(found.numpy(), np.array(expected), rtol=1e-2)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_values_lie_in_one_little_endian_bit_stream(bits):
    values = np.random.default_rng(bits).integers(0, 1 << bits, 96)
    stream = sum(int(v) << (bits * k) for k, v in enumerate(values)).to_bytes(96 * bits // 8, "little")
    words = torch.from_numpy(np.frombuffer(stream, np.int32).copy())
    assert unpack(words[None], bits)[0].tolist() == values.tolist()


def test_an_unknown_mode_is_refused():
    with pytest.raises(UnsupportedError, match="'nf4'"):
        dequantize(torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1), None, mode="nf4", bits=4, group_size=8)

"""What each mode stores is what mx.quantize stores, whole or in blocks of rows."""

from __future__ import annotations

import inspect
import itertools
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxport.errors import QuantizationError
from mlxport.output.plan import make_shards
from mlxport.output.shards import write_shard
from mlxport.quant import MODES, make_spec
from mlxport.transform import row_blocks, st_dtype, to_bytes, trace
from mlxport.types import OutTensor, QuantSpec, TensorRef

SPECS = [spec for mode in MODES.values() for spec in mode.specs()]
IDS = [f"{spec.mode}-{spec.bits}-{spec.group_size}" for spec in SPECS]


@pytest.fixture
def weight(tmp_path: Path) -> TensorRef:
    mx.random.seed(3)
    array = mx.random.normal((37, 384)).astype(mx.bfloat16)
    array[5] = 0
    path = tmp_path / "w.safetensors"
    mx.save_safetensors(str(path), {"w": array})
    size = int.from_bytes(path.read_bytes()[:8], "little")
    return TensorRef("w", "BF16", (37, 384), path, 8 + size)


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_rows_pack_as_the_whole_does(spec: QuantSpec, weight: TensorRef, tmp_path: Path, monkeypatch):
    settings = {"group_size": spec.group_size, "bits": spec.bits, "mode": spec.mode}
    parts = ("weight", "scales", "biases")
    program = trace(lambda t: dict(zip(parts, mx.quantize(t["w"], **settings), strict=False)), {"w": weight})
    want = dict(zip(parts, mx.quantize(mx.load(str(weight.path))["w"], **settings), strict=False))
    outputs = program.outputs
    tensors = [OutTensor(n, st_dtype(o.dtype), o.shape, "w", o.part, o.quant) for n, o in outputs.items()]
    (shard,) = make_shards(tensors, 1 << 30)
    blocks = []

    def odd_blocks(value, quant=None, *_):
        found = list(row_blocks(value, quant, block_bytes=5 * 384 * 2 * MODES[spec.mode].packing_work))
        blocks.extend(found)
        return found

    monkeypatch.setattr("mlxport.output.blocks.row_blocks", odd_blocks)
    write_shard(program, shard, tmp_path / "out.safetensors")
    assert blocks == [(start, min(start + 5, 37)) for start in range(0, 37, 5)]
    got = mx.load(str(tmp_path / "out.safetensors"))
    assert set(got) == set(want)
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        assert to_bytes(got[name]).tobytes() == to_bytes(array).tobytes(), name


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_bits_per_weight_are_the_real_bytes(spec: QuantSpec, dtype: mx.Dtype):
    parts = mx.quantize(mx.ones((16, 768), dtype), group_size=spec.group_size, bits=spec.bits, mode=spec.mode)
    mode = MODES[spec.mode]
    assert len(parts) == 2 + mode.linear
    stored = sum(part.nbytes for part in parts) * 8 / (16 * 768)
    assert mode.bits_per_weight(spec.bits, spec.group_size, dtype.size * 8) == stored


def test_four_bits_in_groups_of_64_are_four_and_a_half():
    assert MODES["affine"].bits_per_weight(4, 64) == 4.5


def test_modes_and_defaults_are_those_of_mlx_lm():
    import mlx_lm.utils

    text = inspect.getsource(mlx_lm.utils.quantize_model)
    found = {name: (int(g), int(b)) for name, g, b in re.findall(r'"(\w+)": \((\d+), (\d+)\)', text)}
    assert {name: (mode.groups[0], mode.bits[0]) for name, mode in MODES.items()} == found


@pytest.mark.parametrize("mode", MODES)
def test_what_mlx_does_not_know_is_not_offered(mode: str):
    known = MODES[mode]
    weight = mx.array(np.ones((32, 512), np.float32))
    for bits, group in itertools.product(range(2, 9), (8, 16, 32, 64, 128, 256)):
        try:
            mx.eval(mx.quantize(weight, group_size=group, bits=bits, mode=mode))
            accepted = True
        except (ValueError, RuntimeError):
            accepted = False
        assert accepted == (bits in known.bits and group in known.groups), (bits, group)


def test_defaults_are_filled_in():
    assert make_spec() == QuantSpec("affine", 4, 64)
    assert make_spec("affine", 8, 128) == QuantSpec("affine", 8, 128)
    assert make_spec("mxfp8") == QuantSpec("mxfp8", 8, 32)
    assert make_spec("nvfp4").as_config() == {"group_size": 16, "bits": 4, "mode": "nvfp4"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int4",), "unknown quantization mode 'int4'"),
        (("affine", 7), "bits 7 does not exist for affine"),
        (("affine", 4, 48), "group size 48 does not exist for affine"),
        (("mxfp4", 8), "bits 8 does not exist for mxfp4"),
        (("nvfp4", None, 32), "group size 32 does not exist for nvfp4"),
        (("affine", 0), "bits 0 does not exist"),
        (("affine", None, 0), "group size 0 does not exist"),
    ],
)
def test_settings_that_do_not_exist(arguments: tuple, message: str):
    with pytest.raises(QuantizationError, match=message) as caught:
        make_spec(*arguments)
    assert caught.value.hint.startswith("choose")

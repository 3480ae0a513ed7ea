"""A mode is one entry: what derives from the table knows a mode that is put there, and nothing else has to."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxport.allocate.candidates import find_candidates
from mlxport.calibrate.calibration_text import calibrated_request, read_calibration
from mlxport.distill.distill_settings import DistillSettings
from mlxport.errors import QuantizationError, UsageError
from mlxport.fit.quant_settings import settings
from mlxport.inspect.dtype_counts import count_parameters
from mlxport.model_config import ModelConfig
from mlxport.parity.dequantize import FORMATS
from mlxport.quant import (
    MODES,
    Mode,
    is_linear,
    level,
    linear_modes,
    make_request,
    make_spec,
    named_modes,
    parse_recipe,
)
from mlxport.quant.modes import by_name
from mlxport.quant.packing import dequantize_rows, quantize_rows, searches
from mlxport.quant.search import SPANS
from mlxport.quant.tolerances import ROWS, STORED_WEIGHT_BOUND, level_name, row_for
from mlxport.transform import row_blocks, trace
from mlxport.types import QuantSpec, TensorRef

TOY = Mode("toy", (5,), (16,), scale_bits=8, faithful_as=4, packing_work=3)
LINE = Mode("line", (4,), (32,), linear=True, packing_work=1)
SETTINGS = [spec for mode in MODES.values() for spec in mode.specs()]


def lacking(mode: Mode) -> list[str]:
    """What a mode needs outside of its entry and does not have."""
    found = [] if mode.name in FORMATS else ["no dequantizer in torch"]
    rows = {row.level: row.row for row in ROWS.values()}
    for bits in mode.bits:
        name = rows.get(level(mode.name, bits))
        if name is None:
            found.append(f"no tolerance of {bits} bits")
        elif name not in STORED_WEIGHT_BOUND:
            found.append(f"no bound on stored weights of {bits} bits")
    if mode.linear:
        wanted = {(spec.bits, spec.group_size) for spec in mode.specs()}
        found += [f"no span to search {key}" for key in wanted if key[1] not in SPANS.get(key[0], {})]
    return found


@pytest.fixture
def toy(monkeypatch) -> Mode:
    monkeypatch.setitem(MODES, "toy", TOY)
    return TOY


@pytest.fixture
def line(monkeypatch) -> Mode:
    monkeypatch.setitem(MODES, "line", LINE)
    return LINE


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_every_mode_has_what_it_needs(mode):
    assert lacking(mode) == []


def test_what_is_forgotten_is_told(monkeypatch):
    odd = Mode("odd", (9,), (48,), linear=True)
    monkeypatch.setitem(MODES, "odd", odd)
    assert lacking(odd) == ["no dequantizer in torch", "no tolerance of 9 bits", "no span to search (9, 48)"]


def test_two_modes_of_one_name_are_refused():
    with pytest.raises(ValueError, match="toy is there twice"):
        by_name([TOY, TOY])


def test_every_list_knows_a_new_mode(toy):
    assert make_spec("toy") == QuantSpec("toy", 5, 16)
    assert make_request("toy").spec == make_request(True, mode="toy").spec == QuantSpec("toy", 5, 16)
    assert parse_recipe('"*" = "toy"', Path("r.toml")).rules[0].spec == QuantSpec("toy", 5, 16)
    assert named_modes()[-1] == "toy"
    assert "toy" in [setting.name("float32") for setting in settings()]  # what fit plans
    assert toy.bits_per_weight(5, 16) == 5.5
    with pytest.raises(QuantizationError) as found:
        make_request("toys")
    assert "nvfp4, mxfp8, toy, mixed_2_6" in found.value.hint
    assert (level("toy", 5), row_for(frozenset({"BF16"}), frozenset({"BF16"}), level("toy", 5)).row) == (4, "4 bits")
    assert level_name(level("toy", 5)) in STORED_WEIGHT_BOUND


def test_the_work_of_packing_is_the_entry_s(toy, tmp_path):
    path = tmp_path / "w.safetensors"
    mx.save_safetensors(str(path), {"w": mx.zeros((64, 32), mx.bfloat16)})
    ref = TensorRef("w", "BF16", (64, 32), path, path.stat().st_size - 64 * 32 * 2)
    value = trace(dict, {"w": ref}).outputs["w"].value
    plain, packed = (list(row_blocks(value, spec, 64 * 32 * 2)) for spec in (None, make_spec("toy")))
    assert (len(plain), len(packed)) == (1, 4)  # a third of 64 rows, in blocks of one size


def test_what_is_chosen_by_data_is_refused_for_it(toy):
    """A mode whose codes are elements of a format has nothing to search, calibrate or train."""
    request = make_request("toy")
    assert not is_linear("toy") and not request.any_linear and not searches("search", request.spec)
    with pytest.raises(QuantizationError, match="of affine modules, and here are none"):
        make_request("toy", quantizer="search")
    with pytest.raises(UsageError, match="of affine modules, and here are none"):
        calibrated_request(read_calibration("default"), request, None)
    with pytest.raises(QuantizationError, match="of affine modules, and here are none"):
        DistillSettings(1).check(request)


def test_a_linear_mode_is_searched_calibrated_trained_and_allocated(line):
    request = make_request("line", quantizer="search")
    assert searches("search", request.spec)
    assert calibrated_request(read_calibration("default"), make_request("line"), None).quantizer == "search"
    DistillSettings(1).check(request)
    assert linear_modes() == "affine or line"

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 64, bias=False)

    model = Model()
    program = trace(lambda t: {"layer.weight": t["w"]}, {"w": TensorRef("w", "F32", (64, 64), Path("w"), 0)})
    candidate = find_candidates(model, program)["layer"]
    assert QuantSpec("line", 4, 32) in candidate.specs
    assert not any(spec.mode in ("mxfp4", "nvfp4", "mxfp8") for spec in candidate.specs)
    assert candidate.nbytes(QuantSpec("line", 4, 32)) == 64 * 64 // 2 + 2 * 4 * 64 * 2


@pytest.mark.parametrize("quantizer", ["rtn", "search"])
@pytest.mark.parametrize("spec", SETTINGS, ids=lambda spec: f"{spec.mode}-{spec.bits}-{spec.group_size}")
def test_rows_are_read_back_as_they_were_packed(spec, quantizer):
    """The error of each setting is what its level says: at most that of the bound on a stored tensor."""
    rows = mx.random.normal((16, 256), key=mx.random.key(spec.bits)).astype(mx.bfloat16)
    found = dequantize_rows(quantize_rows(rows, spec, quantizer), spec)
    assert (found.dtype, found.shape) == (mx.float32, rows.shape)
    error = mx.sqrt(mx.mean(mx.square(found - rows)) / mx.mean(mx.square(rows.astype(mx.float32)))).item()
    assert error < STORED_WEIGHT_BOUND[level_name(level(spec.mode, spec.bits))]
    less = [bound for name, bound in STORED_WEIGHT_BOUND.items() if name == f"{spec.bits + 2} bits"]
    assert all(error > bound / 4 for bound in less)  # and no better than two bits more


def test_a_packed_weight_counts_by_the_group_of_its_mode():
    tensors = {
        "a.weight": TensorRef("a.weight", "U32", (8, 8), Path("w"), 0),
        "a.scales": TensorRef("a.scales", "U8", (8, 4), Path("w"), 256),
    }
    assert count_parameters(ModelConfig({"quantization": {"mode": "nvfp4", "bits": 4}}), tensors) == 8 * 64

"""What the user gives: keywords only, checked, described; and what follows from it."""

from __future__ import annotations

import inspect
import typing
from dataclasses import FrozenInstanceError, fields

import pytest

import mlxport
from mlxport.convert.options import ConvertOptions, SharedOptions
from mlxport.convert.resolved_options import ResolvedOptions, resolve, resolve_port
from mlxport.errors import MlxportError, UsageError
from mlxport.port.port_options import PortOptions


@pytest.mark.parametrize("kind", [SharedOptions, ConvertOptions, PortOptions, ResolvedOptions])
def test_nothing_is_given_by_its_place(kind):
    assert all(field.kw_only for field in fields(kind))
    with pytest.raises(TypeError):
        kind("float16")
    with pytest.raises(FrozenInstanceError):
        kind().dtype = "float16"


def test_types_are_those_of_python():
    hints = typing.get_type_hints(mlxport.convert)
    assert hints["quantize"] == int | str | bool | None and hints["dtype"] is str
    assert hints["return"] is mlxport.ConvertReport


@pytest.mark.parametrize(
    ("function", "keyword", "nearest"),
    [
        ("convert", "quantise", "quantize"),
        ("convert", "bits", "q_bits"),
        ("convert", "quant_predicate", "recipe"),
        ("convert", "max_shard", "max_shard_size"),
        ("convert", "on_port", "report"),
        ("port_folder", "fold_batch_norm", "fold_batchnorm"),
        ("port_folder", "context", None),
    ],
)
def test_an_unknown_keyword_names_the_nearest(function, keyword, nearest, tmp_path):
    with pytest.raises(TypeError, match=rf"^{function}\(\) got an unexpected keyword argument '{keyword}'; ") as error:
        getattr(mlxport, function)("a", tmp_path / "b", **{keyword: 1})
    named = str(error.value).rpartition("did you mean ")[2].strip("'?")
    assert named == nearest if nearest else named in inspect.signature(mlxport.port_folder).parameters
    assert not (tmp_path / "b").exists()


def test_where_from_and_where_to_are_needed():
    with pytest.raises(TypeError, match=r"convert\(\): missing a required argument: 'destination'"):
        mlxport.convert("a")
    with pytest.raises(TypeError, match="too many positional"):
        mlxport.convert("a", "b", "float16")


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"dtype": "int8"}, "--dtype 'int8' does not exist", "choose one of auto, float32, float16, bfloat16"),
        ({"verify": "most"}, "--verify 'most' does not exist", "choose one of auto, full, layerwise, none"),
        ({"shard_by": "block"}, "--shard-by 'block' does not exist", "choose one of size, layer"),
        ({"max_shard_size": 1.5}, "1.5 is not a size", "write it like 5GB, or as whole bytes"),
        ({"max_shard_size": "much"}, "'much' is not a size", "write it like 5GB, 500MB or 2GiB"),
        ({"report_device": "M2 8GB"}, "--report-device has no effect without --report", "add --report"),
        ({"layout": "mlx-lm", "mlxfn": True}, "--mlxfn: for the generated layout only", "add --layout generated"),
        ({"layout": "mlx-lm", "dynamic": False}, "--no-dynamic: for the generated layout only", "add --layout"),
        ({"layout": "generated", "cache": False, "distill": 3}, "--distill: for mlx-lm's layout only", "leave it out"),
        ({"layout": "generated", "cache": False, "kv_bits": 8}, "--kv-bits: for mlx-lm's layout only", "leave it out"),
        ({"layout": "generated", "cache": False, "report": True}, "--report: quality is measured", "leave it out"),
        (
            {"layout": "generated", "cache": False, "calibrate": "self"},
            "--calibrate self: for mlx-lm's layout only",
            "use --quantizer",
        ),
    ],
)
def test_values_are_checked_before_anything_is_opened(given, message, hint):
    with pytest.raises(UsageError) as error:
        ConvertOptions(**given)
    assert error.value.message.startswith(message) and error.value.hint.startswith(hint)


@pytest.mark.parametrize("given", [{"layout": "generated", "calibrate": "none"}, {"layout": "mlx-lm", "distill": 3}])
def test_what_is_not_asked_for_is_not_refused(given):
    assert ConvertOptions(**given).layout == given["layout"]


def test_what_follows_from_them():
    found = resolve(ConvertOptions(quantize=3, quantizer="search", distill=5, kv_bits=8, dry_run=True, quiet=False))
    assert (found.quant.spec.bits, found.quant.quantizer) == (3, "search")
    assert found.training.steps == found.distill == 5 and found.kv.bits == 8
    assert found.dry_run and not found.quiet and found.limit is None and found.calibration is None
    limited = resolve(ConvertOptions(target_bpw=4.5, calibrate="default"))
    assert limited.quant is None and limited.limit.bits_per_weight == 4.5 and limited.calibration.name == "default"
    assert resolve(ConvertOptions(calibrate="none")).calibration is None


def test_a_port_is_of_the_generated_layout():
    found = resolve_port(PortOptions(quantize="mxfp4", overwrite=True))
    assert (found.layout, found.allow_overflow, found.overwrite) == ("generated", True, True)
    assert found.quant.spec.mode == "mxfp4"


@pytest.mark.parametrize(
    "given",
    [
        {"q_bits": 4},
        {"fit": "M2 8GB", "quantize": 4},
        {"context": 512},
        {"kv_group_size": 32},
        {"calibrate": "default"},
        {"quantize": 4, "calibrate": "default", "quantizer": "rtn"},
        {"quantize": "mxfp4", "distill": 3},
    ],
)
def test_options_that_contradict_each_other(given):
    with pytest.raises(MlxportError):
        resolve(ConvertOptions(**given))

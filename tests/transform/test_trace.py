"""Tracing: what is followed, what is not, and that nothing is computed from placeholders."""

from __future__ import annotations

import threading
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from stored import assert_rows, assert_same, assert_traced, real, store, store_random

from mlxport.errors import UnsupportedError, UsageError
from mlxport.output.plan import make_shards
from mlxport.output.shards import write_shard
from mlxport.transform import Evaluator, mx_dtype, st_dtype, to_bytes, trace, trace_shapes
from mlxport.types import DTYPE_BITS, OutTensor, QuantSpec, TensorRef

READABLE = [dtype for dtype in DTYPE_BITS if dtype != "F8_E5M2"]


def written(program, folder: Path) -> dict[str, mx.array]:
    """The outputs of a program, through the writer."""
    tensors = [OutTensor(n, st_dtype(o.dtype), o.shape, n, o.part, o.quant) for n, o in program.outputs.items()]
    (shard,) = make_shards(tensors, 1 << 40)
    write_shard(program, shard, folder / "out.safetensors")
    return mx.load(str(folder / "out.safetensors"))


@pytest.mark.parametrize("dtype", READABLE)
@pytest.mark.parametrize("shape", [(5, 3), (4,), (), (0, 3), (3, 0)])
def test_every_dtype_and_shape(dtype: str, shape: tuple[int, ...], tmp_path: Path):
    refs = store_random(tmp_path, a=(dtype, shape))
    program = assert_traced(refs, lambda t: {"kept": t["a"], "wider": mx.expand_dims(t["a"], 0)})
    assert program.passthrough("kept") == (None if dtype == "F64" else "a")
    assert program.passthrough("wider") is None
    if dtype != "C64":  # which mx.load does not read back
        for name, array in written(program, tmp_path).items():
            want = real(refs)["a"] if name == "kept" else mx.expand_dims(real(refs)["a"], 0)
            assert_same(array, want, name)


def test_scalars_are_combined(tmp_path: Path):
    refs = store_random(tmp_path, a=("F32", ()), b=("BF16", ()), c=("F32", (3, 2)))
    assert_traced(
        refs, lambda t: {"s": t["a"] * 2 + t["b"], "c": t["c"] * t["a"], "r": mx.broadcast_to(t["b"], (2, 2))}
    )


def test_float64_that_overflows_becomes_infinite_without_a_warning(tmp_path: Path):
    refs = store(tmp_path / "a.safetensors", {"a": ("F64", np.array([1e300, -1e300, 0.1, np.nan]))})
    rows = Evaluator().full(trace(dict, refs).outputs["a"].value)
    assert_same(rows, mx.array(np.array([np.inf, -np.inf, 0.1, np.nan], np.float32)))


def test_a_dtype_that_mlx_lacks_is_named(tmp_path: Path):
    refs = {"w": TensorRef("w", "F8_E5M2", (2,), tmp_path / "x.safetensors", 0)}
    with pytest.raises(UnsupportedError, match="w in x.safetensors has dtype F8_E5M2"):
        trace(dict, refs)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
def test_fp8_is_decoded_as_by_mlx(dtype: mx.Dtype, tmp_path: Path):
    data = np.arange(256, dtype=np.uint8).reshape(16, 16)
    refs = store(tmp_path / "a.safetensors", {"a": ("F8_E4M3", data)})
    assert mx_dtype(refs["a"]) == mx.uint8
    program = trace(lambda t: {"a": mx.from_fp8(t["a"], dtype=dtype)}, refs)
    assert_rows(program.outputs["a"].value, mx.from_fp8(mx.array(data), dtype=dtype))


def test_contiguous_is_followed(tmp_path: Path):
    assert_traced(store_random(tmp_path, a=("F16", (4, 6))), lambda t: {"a": mx.contiguous(t["a"].T)[1:]})


def test_a_pipeline_that_cannot_be_exported_is_written_right(tmp_path: Path):
    def pipeline(t):
        return {"fp8": mx.to_fp8(t["a"]), "plain": t["a"] + 1, "q": mx.quantize(t["a"], mode="nvfp4")[0]}

    refs = store_random(tmp_path, a=("F32", (6, 32)))
    program = trace(pipeline, refs)
    assert [output.value for output in program.outputs.values()] == [None] * 3
    assert program.unused() == ()
    for name, array in written(program, tmp_path).items():
        assert_same(array, pipeline(real(refs))[name], name)


def test_many_models_made_before_in_one_process(tmp_path: Path):
    """Each layer splits the random key; unevaluated, a chain of some thousands crashes MLX's export."""
    for _ in range(12_000):
        nn.Linear(2, 2)
    refs = store_random(tmp_path, a=("F32", (3,)))
    assert list(trace(lambda weights: {"a": mx.random.permutation(weights["a"])}, refs).outputs) == ["a"]


def test_an_output_that_rows_cannot_give_is_written_right_beside_others(tmp_path: Path):
    def pipeline(t):
        return {"sorted": mx.sort(t["a"], axis=0), "same": t["a"], "scaled": t["b"].T * 2}

    refs = store_random(tmp_path, a=("BF16", (6, 5)), b=("F16", (3, 2)))
    for name, array in written(trace(pipeline, refs), tmp_path).items():
        assert_same(array, pipeline(real(refs))[name], name)


LOOKS = {
    "item": lambda a: a * a[0, 0].item(),
    "list": lambda a: a + a.tolist()[1][2],
    "truth": lambda a: a + 1 if mx.any(a != 0) else a,
    "numpy": lambda a: mx.array(np.array(a) * 2),
    "eval": lambda a: (mx.eval(a), a * 3)[1],
}


@pytest.mark.parametrize("name", LOOKS)
def test_a_pipeline_that_looks_at_values_sees_the_real_ones(name: str, tmp_path: Path):
    refs = store_random(tmp_path, a=("F32", (4, 3)), b=("F32", (2,)))
    program = trace(lambda t: {"a": LOOKS[name](t["a"]), "b": t["b"]}, refs)
    assert [output.value for output in program.outputs.values()] == [None, None]
    got = written(program, tmp_path)
    assert_same(got["a"], LOOKS[name](real(refs)["a"]))
    assert_same(got["b"], real(refs)["b"])


def test_a_check_of_values_passes_or_fails_on_the_real_ones(tmp_path: Path):
    def pipeline(t):
        if mx.any((t["signs"] != 1) & (t["signs"] != -1)).item():
            raise UsageError("signs")
        return dict(t)

    good = store(tmp_path / "good.safetensors", {"signs": ("F32", np.array([1, -1, 1], np.float32))})
    assert list(trace(pipeline, good).outputs) == ["signs"]
    bad = store(tmp_path / "bad.safetensors", {"signs": ("F32", np.array([1, 0, 1], np.float32))})
    with pytest.raises(UsageError, match="signs"):
        trace(pipeline, bad)


def test_constants_may_be_looked_at(tmp_path: Path):
    def pipeline(t):
        mx.eval(nn.Linear(4, 4).parameters())
        return {"a": t["a"] * mx.array([3.0]).item()}

    assert_traced(store_random(tmp_path, a=("F32", (4, 3))), pipeline)
    assert mx.random.uniform(shape=(2,)).tolist()  # the generator is not left holding placeholders


@pytest.mark.parametrize("error", [ValueError("mine"), KeyError("mine"), UsageError("mine")])
def test_errors_of_the_pipeline_pass_through_and_nothing_stays_patched(error: Exception, tmp_path: Path):
    before = (mx.contiguous, mx.from_fp8, mx.quantize)

    def pipeline(t):
        assert mx.quantize is not before[2]
        raise error

    with pytest.raises(type(error), match="mine"):
        trace(pipeline, store_random(tmp_path, a=("F32", (2, 2))))
    assert (mx.contiguous, mx.from_fp8, mx.quantize) == before


def test_traces_within_and_beside_each_other(tmp_path: Path):
    refs = store_random(tmp_path, a=("F32", (4, 64)))
    before = (mx.contiguous, mx.from_fp8, mx.quantize)
    entered, second_entered, go_on = threading.Event(), threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def inner(t):
        return dict(zip(("weight", "scales", "biases"), mx.quantize(t["a"], bits=4), strict=True))

    def outer(t):
        nested = trace(inner, refs).outputs
        assert [output.part for output in nested.values()] == ["weight", "scales", "biases"]
        entered.set()
        go_on.wait(20)
        return inner(t)

    def other(t):
        second_entered.set()
        return inner(t)

    def run(pipeline):
        try:
            program = trace(pipeline, refs)
            assert [output.part for output in program.outputs.values()] == ["weight", "scales", "biases"]
        except BaseException as error:
            errors.append(error)

    first = threading.Thread(target=run, args=(outer,))
    first.start()
    assert entered.wait(20)
    second = threading.Thread(target=run, args=(other,))
    second.start()
    # This thread is not tracing: it gets what MLX computes, from MLX's own functions.
    fp8 = mx.array([0x38, 0xB8], mx.uint8)
    assert_same(mx.from_fp8(fp8), before[1](fp8))
    assert mx.contiguous(fp8) is not fp8
    assert not second_entered.wait(0.3)
    go_on.set()
    first.join()
    second.join()
    assert second_entered.is_set() and not errors
    assert (mx.contiguous, mx.from_fp8, mx.quantize) == before


def switch_linear():
    from mlx_lm.models.switch_layers import SwitchLinear

    return SwitchLinear(64, 16, 3, bias=True)


def multi_linear():
    from mlx_lm.models.mla import MultiLinear

    return MultiLinear(64, 16, 3)


MODULES = {
    "linear": lambda: nn.Linear(64, 24, bias=True),
    "embedding": lambda: nn.Embedding(30, 128),
    "experts": switch_linear,
    "heads": multi_linear,
}


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("spec", [QuantSpec("affine", 4, 64), QuantSpec("affine", 3, 32), QuantSpec("mxfp4", 4, 32),
                                  QuantSpec("nvfp4", 4, 16), QuantSpec("mxfp8", 8, 32)])  # fmt: skip
def test_quantized_outputs_are_recognised(module: str, spec: QuantSpec, tmp_path: Path):
    def pipeline(t):
        model = nn.Sequential(MODULES[module]())
        model.update(tree_unflatten(list(t.items())))
        nn.quantize(model, spec.group_size, spec.bits, mode=spec.mode)
        return dict(tree_flatten(model.parameters()))

    mx.random.seed(1)
    shapes = {name: tuple(array.shape) for name, array in tree_flatten(nn.Sequential(MODULES[module]()).parameters())}
    refs = store_random(tmp_path, **{name: ("BF16", shape) for name, shape in shapes.items()})
    program = trace(pipeline, refs)
    parts = {name.rpartition(".")[2]: output for name, output in program.outputs.items() if output.part}
    expected = ["weight", "scales", "biases"] if spec.mode == "affine" else ["weight", "scales"]
    assert {name: output.part for name, output in parts.items()} == {name: name for name in expected}
    for output in parts.values():
        assert output.quant == spec
        assert output.value.leaf.name == "layers.0.weight"
        assert program.passthrough(output.name) is None
    for name, array in written(program, tmp_path).items():
        assert_same(array, pipeline(real(refs))[name], name)


def test_a_quantization_with_a_scale_of_its_own_is_not_taken_for_a_plain_one(tmp_path: Path):
    def pipeline(t):
        return {"w": mx.quantize(t["a"], mode="nvfp4", global_scale=t["s"])[0]}

    refs = store(
        tmp_path / "a.safetensors",
        {"a": ("F32", np.ones((2, 32), np.float32)), "s": ("F32", np.array(2, np.float32))},
    )
    output = trace(pipeline, refs).outputs["w"]
    assert (output.value, output.quant, output.part) == (None, None, "")


def test_parts_that_are_changed_afterwards_are_not_taken_for_parts(tmp_path: Path):
    def pipeline(t):
        weight, scales, _ = mx.quantize(t["a"], bits=4)
        return {"weight": weight, "scales": scales.astype(mx.float16)}

    refs = store_random(tmp_path, a=("F32", (4, 64)))
    program = trace(pipeline, refs)
    assert [(o.part, o.value is None) for o in program.outputs.values()] == [("weight", False), ("", True)]
    for name, array in written(program, tmp_path).items():
        assert_same(array, pipeline(real(refs))[name], name)


def test_passthrough_and_unused(tmp_path: Path):
    refs = store_random(tmp_path, a=("BF16", (4, 3)), b=("F32", (2,)), c=("I64", (2,)), d=("F64", (2,)))

    def pipeline(t):
        same = t["a"].astype(mx.bfloat16).reshape(4, 3).transpose(0, 1)
        return {"x": same, "y": t["a"], "twice": mx.stack([t["b"]]), "d": t["d"]}

    program = assert_traced(refs, pipeline)
    assert {name: program.passthrough(name) for name in program.outputs} == {
        "x": "a", "y": "a", "twice": None, "d": None,
    }  # fmt: skip
    assert program.unused() == ("c",)


def test_bytes_of_arrays_that_are_not_contiguous():
    array = mx.arange(12, dtype=mx.uint16).reshape(3, 4).T
    assert to_bytes(array).tobytes() == np.arange(12, dtype=np.uint16).reshape(3, 4).T.tobytes()
    assert to_bytes(mx.array(1 + 2j)).tobytes() == np.complex64(1 + 2j).tobytes()


def test_shapes_alone_are_those_of_a_trace():
    refs = {
        f"{name}.{number}": TensorRef(f"{name}.{number}", dtype, shape, Path("none"), 0)
        for name, dtype, shape in (("w", "F8_E4M3", (6, 8)), ("s", "F32", (6, 1)), ("b", "BF16", (3,)))
        for number in range(4)
    }

    def pipeline(t: dict[str, mx.array]) -> dict[str, mx.array]:
        weights = [mx.pad(mx.from_fp8(t[f"w.{n}"]), ((0, 0), (0, 0))) for n in range(4)]
        weights = [mx.pad((w * t[f"s.{n}"]).astype(mx.float16), ((0, 2), (0, 0))) for n, w in enumerate(weights)]
        return {"w": mx.stack(weights), "b": mx.concatenate([t["b.0"], t["b.1"]]), "c": mx.contiguous(t["b.2"])}

    traced, shapes = trace(pipeline, refs), trace_shapes(pipeline, refs)
    described = [{o.name: (o.shape, o.dtype) for o in p.outputs.values()} for p in (traced, shapes)]
    assert described[0] == described[1] and described[1]["w"] == ((4, 8, 8), mx.float16)
    assert all(output.value is None for output in shapes.outputs.values())


def test_what_looks_at_values_has_no_shapes_alone(tmp_path: Path):
    refs = store(tmp_path / "a.safetensors", {"a": ("F32", np.array([3, 4], np.float32))})

    def pipeline(t: dict[str, mx.array]) -> dict[str, mx.array]:
        return {"a": mx.zeros((int(t["a"][0].item()),))}

    assert trace_shapes(pipeline, refs).outputs["a"].shape == (3,)


def test_a_part_that_was_joined_to_others_is_read_as_it_is(tmp_path: Path):
    refs = store_random(tmp_path, a=("F32", (3, 2, 2)), b=("F32", (3, 5, 2)))

    def cut(t: dict[str, mx.array]) -> dict[str, mx.array]:
        both = mx.concatenate([t["a"], t["b"]], axis=1)
        return {"first": both[:, :2], "second": both[:, 2:], "other": both[:, 1:], "turn": both[:, ::2]}

    program = assert_traced(refs, cut)
    kept = {name: program.passthrough(name) for name in program.outputs}
    assert kept == {"first": "a", "second": "b", "other": None, "turn": None}

"""A tensor of a file, of a traced program, or of one that cannot be traced: the same by rows and as a whole."""

from __future__ import annotations

import mlx.core as mx
import pytest

from checkpoints import write_llama
from mlxport.layouts.mlx_lm.opening import open_model
from mlxport.model.lazy_parameters import LazyModel, parameters_of
from mlxport.model.tensors import computed_tensors, stored_tensors, whole
from mlxport.source import open_checkpoint
from mlxport.transform import lazy_outputs, trace


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_checkpoint(str(write_llama(tmp_path_factory.mktemp("tensors") / "source", shards=1)))


def stacked(arrays):
    """An ordinary map: a cast, a stack of two tensors, and one that passes through."""
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"]
    return {
        "both": mx.stack([arrays[name] for name in names]),
        "wide": arrays["model.layers.0.self_attn.q_proj.weight"].astype(mx.float32) * 2,
        "norm": arrays["model.norm.weight"],
    }


def untraced(arrays):
    """The same behind an operation that has no row rule."""
    return {name: mx.sort(array, axis=-1) for name, array in stacked(arrays).items()}


@pytest.mark.parametrize("pipeline", [stacked, untraced])
def test_computed_by_rows_and_as_a_whole(checkpoint, pipeline):
    program = trace(pipeline, checkpoint.tensors)
    assert all((output.value is None) == (pipeline is untraced) for output in program.outputs.values())
    tensors, expected = computed_tensors(program), lazy_outputs(program)
    for name, tensor in tensors.items():
        array = expected[name]
        assert (tensor.shape, tensor.dtype, tensor.nbytes) == (tuple(array.shape), array.dtype, array.nbytes)
        for _ in range(2):  # what is let go of is made anew
            assert mx.array_equal(tensor.lazy(), array) and mx.array_equal(whole(tensor), array)
        parts = [tensor.rows(start, stop) for start, stop in tensor.blocks(64)]
        assert mx.array_equal(mx.concatenate(parts), array)
        assert len(parts) > 1 or pipeline is untraced or name == "norm"


def test_stored_by_rows_and_as_a_whole(checkpoint):
    tensors = stored_tensors(checkpoint.root)
    assert tensors.keys() == checkpoint.tensors.keys()
    tensor = tensors["model.layers.0.mlp.down_proj.weight"]
    array = mx.load(str(checkpoint.root / "model.safetensors"))["model.layers.0.mlp.down_proj.weight"]
    assert (tensor.shape, tensor.dtype, tensor.nbytes) == (tuple(array.shape), array.dtype, array.nbytes)
    spans = list(tensor.blocks(1000))
    assert len(spans) > 5 and spans[-1][1] == array.shape[0]
    assert mx.array_equal(mx.concatenate([tensor.rows(*span) for span in spans]), array)
    assert mx.array_equal(whole(tensor), array) and mx.array_equal(tensor.lazy(), array)


def test_rows_of_a_small_model_are_computed_once(checkpoint):
    program = trace(stacked, checkpoint.tensors)
    size = sum(tensor.nbytes for tensor in computed_tensors(program).values())
    kept, passing = (computed_tensors(program, most)["wide"] for most in (size, size - 1))
    assert kept.rows(2, 4) is kept.rows(2, 4) and passing.rows(2, 4) is not passing.rows(2, 4)
    assert mx.array_equal(kept.rows(2, 4), passing.rows(2, 4)) and kept.rows(0, 2).shape == (2, 64)


def values(lazy: LazyModel) -> dict[str, float]:
    return {name: mx.abs(array.astype(mx.float32)).sum().item() for name, array in parameters_of(lazy.model)}


def test_parameters_are_there_while_they_are_wanted(checkpoint):

    tensors = computed_tensors(open_model(checkpoint).plain.program)
    lazy = LazyModel(open_model(checkpoint).skeleton(), tensors, lambda _, array: array.astype(mx.float32))
    assert set(values(lazy).values()) == {0}
    lazy.fill("model.layers.1.", skip=["model.layers.1.mlp.up_proj.weight"])
    assert {name for name, size in values(lazy).items() if size} == {
        name for name in lazy.shapes if name.startswith("model.layers.1.") and "up_proj" not in name
    }
    assert dict(parameters_of(lazy.model))["model.layers.1.mlp.down_proj.weight"].dtype == mx.float32
    lazy.release("model.layers.1.mlp.")
    assert all(not size for name, size in values(lazy).items() if ".mlp." in name) and any(values(lazy).values())
    lazy.release()
    lazy.fill_outside(["model.layers.0", "model.layers.1"])
    assert {name for name, size in values(lazy).items() if size} == {
        "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
    }  # fmt: skip
    lazy.fill()
    assert all(values(lazy).values())


def test_a_parameter_of_another_shape_is_refused(checkpoint):
    from mlxport.errors import UnsupportedError

    tensors = computed_tensors(open_model(checkpoint).plain.program)
    tensors["lm_head.weight"] = tensors["model.norm.weight"]
    lazy = LazyModel(open_model(checkpoint).skeleton(), tensors)
    with pytest.raises(UnsupportedError, match=r"lm_head\.weight has shape"):
        lazy.fill("lm_head")

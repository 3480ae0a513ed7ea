"""A stored output layer beside tied embeddings; numbers that are no weights; where an error is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from tiny_models import convert, copy_with, load, open_target, read_weights, save_model
from transformers import AutoModelForCausalLM

from mlxport.errors import ConfigError, UnsupportedError, WeightsError
from mlxport.layouts.mlx_lm.opening import check_supported
from mlxport.source import open_checkpoint, row_reader
from mlxport.types import Checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
TIED = ("llama_tied", "gemma2", "cohere", "gpt_neox")


def with_head(architecture: str, folder: Path, *, differs: bool) -> Path:
    """A tied checkpoint, in float32, that stores its output layer too."""
    plain = save_model(architecture, folder / "plain", torch.float32, tie_word_embeddings=True)
    weights = read_weights(plain)
    embedding = next(
        array for name, array in weights.items() if name.endswith(("embed_tokens.weight", "embed_in.weight"))
    )
    head = embedding + (mx.arange(embedding.shape[0]) == 95)[:, None] if differs else embedding
    name = "embed_out.weight" if architecture == "gpt_neox" else "lm_head.weight"
    source = copy_with(plain, folder / "source", {**weights, name: head})
    path = source / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "hidden_act": "gelu_new"} if architecture == "gpt_neox" else config))
    return source


def assert_same_logits(source: Path, out: Path) -> None:
    ids = [[(7 * i + 3) % 96 for i in range(20)]]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(ids), use_cache=False).logits.numpy()
    np.testing.assert_allclose(np.array(load(out)(mx.array(ids))), expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("architecture", TIED)
def test_a_stored_copy_of_the_embeddings_is_no_obstacle(architecture: str, tmp_path: Path) -> None:
    source = with_head(architecture, tmp_path, differs=False)
    convert(source, tmp_path / "out", dtype="float32")
    assert_same_logits(source, tmp_path / "out")


@pytest.mark.parametrize("architecture", TIED[:3])
@pytest.mark.parametrize("block", [1 << 23, 600])
def test_another_stored_head_is_refused(
    architecture: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_reader, "_COMPARED_BLOCK", block)
    source = with_head(architecture, tmp_path, differs=True)
    with pytest.raises(ConfigError, match=r"config\.json: tie_word_embeddings is true, but lm_head\.weight is not"):
        open_target(open_checkpoint(source))


def test_another_stored_head_is_kept_where_mlx_lm_has_a_place(tmp_path: Path) -> None:
    source = with_head("gpt_neox", tmp_path, differs=True)
    convert(source, tmp_path / "out", dtype="float32")
    assert_same_logits(source, tmp_path / "out")


def test_a_head_that_is_not_tied_is_not_compared(tmp_path: Path) -> None:
    source = save_model("llama", tmp_path / "source")
    assert "lm_head.weight" in open_target(open_checkpoint(source)).program.outputs


@pytest.mark.parametrize(("dtype", "stored"), [(mx.int8, "I8"), (mx.int32, "I32"), (mx.complex64, "C64")])
def test_numbers_that_are_no_weights_are_refused(dtype: mx.Dtype, stored: str, tmp_path: Path) -> None:
    plain = save_model("llama", tmp_path / "plain")
    weights = {name: (array.astype(mx.float32) * 100).astype(dtype) for name, array in read_weights(plain).items()}
    source = copy_with(plain, tmp_path / "source", weights)
    with pytest.raises(WeightsError, match=rf"\.weight is stored as {stored}, .* names no quantization"):
        open_target(open_checkpoint(source))


def test_the_dtype_is_never_auto(tmp_path: Path) -> None:
    assert open_target(open_checkpoint(save_model("llama", tmp_path / "source"))).config["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("block", "kind", "what"),
    [
        (7, ConfigError, "quantization_config must be an object"),
        ({"quant_method": "gptq"}, UnsupportedError, "the checkpoint is quantized with gptq"),
    ],
)
def test_an_unreadable_quantization_names_the_file(block: Any, kind: type[Exception], what: str) -> None:
    config = {"model_type": "llama", "quantization_config": block}
    with pytest.raises(kind, match=rf"^config\.json: {what}"):
        check_supported(config)
    with pytest.raises(kind, match=rf"^/nowhere/config\.json: {what}"):
        open_target(Checkpoint(Path("/nowhere"), config, {}, ()))

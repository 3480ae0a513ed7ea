"""An MLX folder as original: it is its own reference where torch does not read its layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from verify_models import checkpoint_of

from mlxport.layouts.mlx_lm.normalize import normalize_config
from mlxport.parity import verify
from mlxport.run.load import in_mlx_files

# Convolutions are transposed in both; norms are stored shifted by one in the second.
CONFIGS = {
    "mamba": lambda: transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8),
    "qwen3_next": lambda: transformers.Qwen3NextConfig(
        vocab_size=64, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, num_experts=2, num_experts_per_tok=2, moe_intermediate_size=32,
        shared_expert_intermediate_size=32, layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=32, linear_value_head_dim=32,
        max_position_embeddings=128,
    ),
    "llama": lambda: transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    from mlx_lm.utils import load_model, save_model

    base, name = tmp_path_factory.mktemp("folders"), request.param
    torch.manual_seed(4)
    config = CONFIGS[name]()
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(base / "torch")
    source = base / "torch/config.json"
    source.write_text(json.dumps(normalize_config(json.loads(source.read_text())).config))
    model, _ = load_model(base / "torch", lazy=True)
    (base / "mlx").mkdir()
    save_model(base / "mlx", model, donate_model=False)
    shutil.copyfile(source, base / "mlx/config.json")
    return SimpleNamespace(path=base / "mlx", plain=base / "torch", in_torch=name == "llama")


def test_the_mark_of_mlx_is_in_the_files(folder: SimpleNamespace) -> None:
    mlx, plain = (in_mlx_files(checkpoint_of(path).weight_files) for path in (folder.path, folder.plain))
    assert mlx and not plain


@pytest.mark.parametrize("mode", ["full", "layerwise"])
def test_it_is_its_own_reference(folder: SimpleNamespace, mode: str) -> None:
    report = verify(folder.path, checkpoint_of(folder.path), mode=mode, tokens=12)
    assert report.passed and report.mode == mode, report.failure_message()
    assert report.comparisons[0].positions == report.tokens and report.weights is not None
    assert any("the reference is that folder" in note for note in report.notes) != folder.in_torch
    assert report.positions is not None and report.positions.proven == (128 if folder.in_torch else 12)
    assert ("; positions beyond are proven against PyTorch" in report.summary()) != folder.in_torch


def test_another_weight_is_found(folder: SimpleNamespace, tmp_path: Path) -> None:
    wrong = shutil.copytree(folder.path, tmp_path / "wrong")
    tensors = load_file(wrong / "model.safetensors")
    name = next(name for name in tensors if name.endswith("norm.weight"))
    tensors[name] = tensors[name] * 2
    save_file(tensors, wrong / "model.safetensors", metadata={"format": "mlx"})
    report = verify(wrong, checkpoint_of(folder.path), mode="full", tokens=12)
    assert not report.passed and name in report.failure_message()
    assert not report.comparisons[0].passed

"""Far positions: right outputs are proven to the end of their context, faults that only show there are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from mlx_lm.models.cache import make_prompt_cache
from verify_models import checkpoint_of

from mlxport.layouts.mlx_lm.normalize import normalize_config
from mlxport.model import loaded as out
from mlxport.parity import own_inverse, verify
from mlxport.parity.far_caches import Timeline, leaves, stand_ins
from mlxport.parity.far_original import _returned_beside
from mlxport.parity.far_output import FarOutput
from mlxport.parity.far_positions import far_end, pieces, stated_edges
from mlxport.parity.parity_report import ParityReport

SIZES: dict[str, Any] = dict(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1,
)  # fmt: skip
FAR = {**SIZES, "max_position_embeddings": 65536}
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
LONG = dict(short_factor=[1.1] * 8, long_factor=[4.0] * 8, original_max_position_embeddings=4096)
MLA = dict(
    num_key_value_heads=2, moe_intermediate_size=16, n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2,
    n_shared_experts=1, first_k_dense_replace=1, q_lora_rank=24, kv_lora_rank=16, qk_rope_head_dim=8,
    qk_nope_head_dim=8, v_head_dim=16,
)  # fmt: skip


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **settings}}


CONFIGS: dict[str, Callable[[], Any]] = {
    "default": lambda: transformers.LlamaConfig(**FAR, **rope("default")),
    "linear": lambda: transformers.LlamaConfig(**FAR, **rope("linear", factor=4.0)),
    "llama3": lambda: transformers.LlamaConfig(**FAR, **rope("llama3", **LLAMA3)),
    "yarn": lambda: transformers.Qwen3Config(
        **FAR, head_dim=16, **rope("yarn", factor=4.0, original_max_position_embeddings=16384)
    ),
    "dynamic": lambda: transformers.LlamaConfig(
        **{**FAR, "max_position_embeddings": 2048}, **rope("dynamic", factor=4.0)
    ),
    "longrope": lambda: transformers.Phi3Config(**FAR, **rope("longrope", **LONG), sliding_window=None, pad_token_id=0,
                                                original_max_position_embeddings=4096),
    "windows": lambda: transformers.Gemma3TextConfig(
        **{**FAR, "num_hidden_layers": 6}, head_dim=16, sliding_window=600
    ),
    "latent": lambda: transformers.DeepseekV3Config(
        **{**FAR, **MLA}, **rope("yarn", factor=4.0, original_max_position_embeddings=16384, mscale=1, mscale_all_dim=1)
    ),
    "table": lambda: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=700),
    # The first attention stands behind blocks whose input has another name than elsewhere.
    "hybrid": lambda: transformers.RecurrentGemmaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, lru_width=32,
        num_key_value_heads=1, head_dim=16, attention_window_size=600,
    ),
    # Another gelu than mlx-lm's: near, but not in attention.
    "near": lambda: transformers.Starcoder2Config(**FAR, **rope("default"), sliding_window=None),
    "state": lambda: transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8),
}  # fmt: skip
PROVEN = {"linear": 4 * 65536, "dynamic": 4 * 2048, "longrope": 4096, "table": 700, "state": 1 << 17, "hybrid": 1 << 17}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SimpleNamespace]:
    done: dict[str, SimpleNamespace] = {}

    def make(name: str) -> SimpleNamespace:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            torch.manual_seed(3)
            config = CONFIGS[name]()
            config.bos_token_id = config.eos_token_id = config.pad_token_id = None
            model = transformers.AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    if parameter.ndim >= 2 and "embed" not in key and "wpe" not in key:
                        parameter.mul_(3.0)
            (model.transformer if name == "table" else model).save_pretrained(folder / "source")
            checkpoint = checkpoint_of(folder / "source")
            done[name] = SimpleNamespace(checkpoint=checkpoint, output=_output(checkpoint, folder / "output"))
        return done[name]

    return make


def _output(checkpoint: Any, folder: Path) -> Path:
    """What a conversion to mlx-lm writes of a model in float32: the weights as mlx-lm's own code rearranges them."""
    from mlx_lm.utils import load_model, save_model

    staged = shutil.copytree(checkpoint.root, folder.with_name("staged"))
    config = normalize_config(checkpoint.config).config
    (staged / "config.json").write_text(json.dumps(config))
    model, _ = load_model(staged, lazy=True)
    folder.mkdir()
    save_model(folder, model, donate_model=False)
    shutil.copyfile(staged / "config.json", folder / "config.json")
    return folder


def _verified(made: SimpleNamespace, output: Path | None = None) -> ParityReport:
    checkpoint = made.checkpoint
    return verify(output or made.output, checkpoint, mode="full", invert=own_inverse(checkpoint), tokens=16)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_right_is_proven_to_its_end(name: str, made: Callable[[str], SimpleNamespace]) -> None:
    report = _verified(made(name))
    assert report.passed and report.positions is not None, report.failure_message()
    assert (report.positions.proven, report.positions.reason) == (PROVEN.get(name, 65536), "")
    assert len(report.positions.kinds) == {"windows": 2, "state": 0}.get(name, 1)
    assert f"proven up to position {PROVEN.get(name, 65536)}" in report.summary()
    assert any("mlx-lm reads a long prompt in pieces" in note for note in report.notes) == (name == "dynamic")


def _without(config: dict[str, Any]) -> None:
    del config["rope_scaling"], config["rope_parameters"]


def _scaling(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def edit(config: dict[str, Any]) -> None:
        config["rope_scaling"].update(changes)

    return edit


def _field(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.update({name: value})


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("default", _field("rope_theta", 10001.0)),
        ("linear", _scaling(factor=4.001)),
        ("llama3", _scaling(factor=7.9)),
        ("llama3", _scaling(original_max_position_embeddings=8000)),
        ("dynamic", _without),
        ("dynamic", _scaling(factor=2.0)),
        ("dynamic", _field("max_position_embeddings", 4096)),
        ("longrope", _scaling(long_factor=[1.1] * 6 + [1.3] * 2)),
        ("hybrid", _field("attention_window_size", 599)),
        ("near", _field("rope_theta", 10010.0)),
        ("windows", _field("sliding_window", 601)),
        ("windows", _field("sliding_window", 599)),
        ("windows", _field("sliding_window", 65536)),
        ("windows", _field("rope_theta", 1001000.0)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_only_far_away_is_refused(
    name: str, edit: Callable[[dict[str, Any]], None], made: Callable[[str], SimpleNamespace], tmp_path: Path
) -> None:
    right = made(name)
    wrong = shutil.copytree(right.output, tmp_path / "wrong")
    config = json.loads((wrong / "config.json").read_text())
    edit(config)
    (wrong / "config.json").write_text(json.dumps(config))
    report = _verified(right, wrong)
    assert all(comparison.passed for comparison in report.comparisons), "the first tokens show it"
    assert not report.passed and report.positions is not None and report.positions.failures
    assert 16 <= report.positions.proven < PROVEN.get(name, 65536)
    assert (
        f"position {report.positions.kinds[-1].wrong_at or report.positions.kinds[0].wrong_at}: "
        in report.failure_message()
    )


@pytest.mark.parametrize("name", ["default", "windows", "latent"])
def test_a_stand_in_computes_what_the_cache_that_it_stands_for_does(
    name: str, made: Callable[[str], SimpleNamespace], tmp_path: Path
) -> None:
    folder = shutil.copytree(made(name).output, tmp_path / "small")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sliding_window": 5}))
    model = out.load_output(folder)
    real, timeline = make_prompt_cache(model), Timeline()
    other = stand_ins(make_prompt_cache(model), timeline)
    ids = np.arange(14)
    for start, stop in ((0, 4), (4, 10), (10, 11), (11, 12), (12, 14)):
        timeline.past, timeline.now = timeline.past + timeline.now, list(range(start, stop))
        for cache in leaves(other):
            cache.jump(forget=False)
        tokens = mx.array(ids[start:stop])[None]
        assert mx.allclose(model(tokens, cache=real), model(tokens, cache=other), atol=1e-5)


def test_looking_for_attention_reads_no_block(made: Callable[[str], SimpleNamespace]) -> None:
    output = FarOutput(made("default").output)
    blocks = sum(4 * prod(tensor.shape) for name, tensor in output.tensors.items() if ".layers." in name)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    assert len(output.attentions()) == 1
    assert mx.get_peak_memory() - before < blocks / 4


def test_positions_stand_on_both_sides_of_every_edge() -> None:
    calls = pieces(65536, [600, 8192])
    flat = [position for call in calls for position in call]
    assert flat == sorted(set(flat)) and flat[0] == 0 and calls[-1] == [65535] and len(flat) < 80
    assert {65535 - 600, 65535 - 599, 65535 - 8192, 65535 - 8191, 599, 600} <= set(flat)
    assert all(call == list(range(call[0], call[-1] + 1)) for call in calls)


@pytest.mark.parametrize(
    ("settings", "context", "exact", "end"),
    [
        ({}, 4096, None, 4096),
        ({}, None, None, 1 << 17),
        ({"rope_parameters": {"factor": 4.0, "original_max_position_embeddings": 4096}}, 8192, None, 16384),
        ({"rope_parameters": {"full_attention": {"factor": 2.0}}}, 8192, None, 16384),
        ({"rope_scaling": None}, 8192, 512, 512),
        ({"rope_parameters": {"factor": "many"}}, 10**12, None, 1 << 24),
    ],
)
def test_the_end_of_a_context(settings: dict[str, Any], context: int | None, exact: int | None, end: int) -> None:
    assert far_end(settings, context, exact) == end


def test_lengths_that_a_config_names_are_edges() -> None:
    settings = {"sliding_window": 600, "vocab_size": 9, "rope_parameters": {"original_max_position_embeddings": 4096}}
    assert {600, 4096} <= set(stated_edges(settings, 65536)) and 600 not in stated_edges(settings, 500)


def _one(self: Any, hidden_states: Any) -> Any:
    hidden_states = hidden_states + 1
    return hidden_states


def _two(self: Any, activations: Any) -> Any:
    states = activations + 1
    return states, None


def _named(self: Any, hidden_states: Any) -> Any:
    outputs = (hidden_states,)
    return outputs


def _either(self: Any, hidden_states: Any, more: bool) -> Any:
    outputs = (hidden_states,)
    if more:
        outputs += (None,)
    return outputs


def _called(self: Any, hidden_states: Any) -> Any:
    return self.whole(hidden_states)


@pytest.mark.parametrize(("forward", "form"), [(_one, 0), (_two, 2), (_named, 1), (_either, None), (_called, None)])
def test_what_a_block_returns_is_read_from_its_source(forward: Callable[..., Any], form: int | None) -> None:
    assert _returned_beside(forward) == form

"""One pass over a batch whose parts see other roundings tells what as many passes over rounded models do."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models import switch_layers
from sensitive_models import KINDS, save

from mlxport.allocate.candidates import find_candidates, reachable
from mlxport.allocate.damage import ProbeBatch, token_divergences, weight_errors
from mlxport.allocate.measure import prepare
from mlxport.allocate.probe import candidate_weights, rounded
from mlxport.errors import NumericsError
from mlxport.layouts.mlx_lm.opening import open_model
from mlxport.quant import make_spec
from mlxport.source import open_checkpoint
from mlxport.transform import lazy_outputs

SPECS = (make_spec("affine", 2, 32), make_spec("affine", 4, 64))


def log_probabilities(model: nn.Module, ids: mx.array, stride: int) -> mx.array:
    return nn.log_softmax(model(ids)[:, stride - 1 :: stride], axis=-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("parts", "stride"), [(3, 1), (64, 4)])
def test_equal_to_rounding_one_module_at_a_time(kind: str, parts: int, stride: int, tmp_path: Path):
    checkpoint = open_checkpoint(save(kind, tmp_path / "source"))
    program = open_model(checkpoint).plain.program
    ids = mx.random.randint(0, 320, (2, 40), key=mx.random.key(1))

    model = open_model(checkpoint).skeleton()
    candidates, calls = reachable(model, find_candidates(model, program))
    weights = candidate_weights(program, candidates)
    prepare(model, program, candidates)
    modules = {path: given.module for path, given in candidates.items()}
    wanted = [(path, spec) for path in calls.order for spec in SPECS if spec in candidates[path].specs]
    kinds, sort = [type(module) for module in modules.values()], switch_layers._gather_sort
    batch, changes = ProbeBatch(ids, parts, calls.last, stride), [{path: spec} for path, spec in wanted]
    together = {path: next(spec for at, spec in wanted if at == path) for path in calls.order}
    each = token_divergences(model, modules, weights, batch, [*changes, together], "rtn")
    measured = [max(float(divergence.mean()), 0.0) for divergence in each]
    found = dict(zip(wanted, measured, strict=False))
    assert [type(module) for module in modules.values()] == kinds and switch_layers._gather_sort is sort

    plain = open_model(checkpoint).skeleton()
    stored = lazy_outputs(program)
    nn.Module.load_weights(plain, [(name, array.astype(mx.float32)) for name, array in stored.items()])
    original = log_probabilities(plain, ids, stride)
    leaves = dict(plain.named_modules())
    checked = 0
    for path, spec in wanted[:: max(1, len(wanted) // 12)]:
        kept = leaves[path]["weight"]
        leaves[path]["weight"] = rounded(stored[f"{path}.weight"], spec)
        other = log_probabilities(plain, ids, stride)
        leaves[path]["weight"] = kept
        divergence = (mx.exp(original) * (original - other)).sum(-1).mean().item()
        assert found[path, spec] == pytest.approx(divergence, rel=1e-3, abs=2e-6), (path, spec)
        checked += divergence > 1e-5
    assert checked >= 4

    for path, spec in together.items():
        leaves[path]["weight"] = rounded(stored[f"{path}.weight"], spec)
    other = log_probabilities(plain, ids, stride)
    divergence = (mx.exp(original) * (original - other)).sum(-1).mean().item()
    assert divergence > 1e-4 and measured[-1] == pytest.approx(divergence, rel=1e-3)


def test_activations_that_are_not_finite_are_named(tmp_path: Path):
    folder = save("llama", tmp_path / "source")
    arrays = dict(mx.load(str(folder / "model.safetensors")).items())
    arrays["model.layers.1.mlp.up_proj.weight"] *= float("nan")
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)
    checkpoint = open_checkpoint(folder)
    program = open_model(checkpoint).plain.program
    model = open_model(checkpoint).skeleton()
    candidates, calls = reachable(model, find_candidates(model, program))
    prepare(model, program, candidates)
    modules = {path: given.module for path, given in candidates.items()}
    ids, changes = mx.zeros((1, 4), mx.int32), [{calls.order[0]: SPECS[0]}]
    with pytest.raises(NumericsError, match=r"model\.layers\.1\.mlp\.up_proj"):
        token_divergences(model, modules, candidate_weights(program, candidates), ProbeBatch(ids, 4), changes, "rtn")


@pytest.mark.parametrize("kind", ["llama", "experts"])
def test_a_sample_tells_the_error_of_all(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint = open_checkpoint(save(kind, tmp_path / "source", hidden_size=256))
    program = open_model(checkpoint).plain.program
    model = open_model(checkpoint).skeleton()
    candidates = find_candidates(model, program)
    weights = candidate_weights(program, candidates)
    for path, given in candidates.items():
        whole, energy = weight_errors(weights[path], given.specs, "rtn")
        with monkeypatch.context() as patched:
            patched.setattr("mlxport.allocate.damage.SAMPLE", 16384)
            sampled, sampled_energy = weight_errors(weights[path], given.specs, "rtn")
        assert sampled_energy == pytest.approx(energy, rel=0.1)
        assert all(sampled[spec] == pytest.approx(whole[spec], rel=0.2) for spec in given.specs), path

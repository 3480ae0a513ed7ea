"""Our Qwen of 2023 in torch against its formulas written out plainly, beyond the length that it was trained for too."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mlxport.parity import reference as ref  # noqa: E402
from mlxport.source import open_checkpoint  # noqa: E402
from qwen_models import HEADS, HIDDEN, LAYERS, TRAINED, config, weights, write_qwen  # noqa: E402

WIDTH = HIDDEN // HEADS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen(tmp_path_factory.mktemp("qwen") / "in")


def rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def turned(x: np.ndarray, base: float) -> np.ndarray:
    """Each pair of numbers (i, i + WIDTH / 2) of a head, as a complex number, turned by its angle."""
    half = WIDTH // 2
    angles = np.arange(len(x))[:, None] / base ** (2 * np.arange(half) / WIDTH)
    pairs = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None]
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def formulas(ids: np.ndarray, *, logn: bool, ntk: bool) -> np.ndarray:
    """The logits [tokens, vocabulary] in float64."""
    tensors = {name: array.astype(np.float64) for name, array in weights().items()}
    length, base = len(ids), 10000.0
    if ntk and length > TRAINED:
        base *= (2 ** math.ceil(math.log(length / TRAINED, 2) + 1) - 1) ** (WIDTH / (WIDTH - 2))
    scale = [math.log(t, TRAINED) if logn and t > TRAINED else 1.0 for t in range(1, length + 1)]
    x = tensors["transformer.wte.weight"][ids]
    for layer in range(LAYERS):
        part = {name.split(f".h.{layer}.")[-1]: array for name, array in tensors.items() if f".h.{layer}." in name}
        made = rms(x, part["ln_1.weight"]) @ part["attn.c_attn.weight"].T + part["attn.c_attn.bias"]
        q, k, v = (item.reshape(length, HEADS, WIDTH) for item in np.split(made, 3, axis=-1))
        q, k = turned(q, base) * np.array(scale)[:, None, None], turned(k, base)
        scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(WIDTH)
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        chances = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", chances / chances.sum(-1, keepdims=True), v)
        x = x + mixed.reshape(length, HIDDEN) @ part["attn.c_proj.weight"].T
        h = rms(x, part["ln_2.weight"])
        gate = h @ part["mlp.w2.weight"].T
        x = x + (h @ part["mlp.w1.weight"].T * gate / (1 + np.exp(-gate))) @ part["mlp.c_proj.weight"].T
    return rms(x, tensors["transformer.ln_f.weight"]) @ tensors["lm_head.weight"].T


def original(folder: Path, **changes: Any) -> Any:
    checkpoint = open_checkpoint(folder)
    tensors = {name: torch.from_numpy(array) for name, array in weights().items()}
    return ref.load_reference(replace(checkpoint, config=config(**changes)), tensors)


@pytest.mark.parametrize(("logn", "ntk"), [(True, True), (True, False), (False, True)])
def test_it_is_the_formulas(folder: Path, logn: bool, ntk: bool) -> None:
    model = original(folder, use_logn_attn=logn, use_dynamic_ntk=ntk)
    for tokens in (TRAINED, TRAINED + 1, 2 * TRAINED + 1):
        ids = np.random.default_rng(tokens).integers(0, 640, tokens)
        found, wanted = ref.logits(model, ids), formulas(ids, logn=logn, ntk=ntk)
        assert np.abs(found - wanted).max() <= 2e-5 * np.abs(wanted).max(), tokens


def test_the_length_changes_what_it_computes() -> None:
    ids = np.random.default_rng(0).integers(0, 640, TRAINED + 20)
    plain = formulas(ids, logn=False, ntk=False)
    for logn, ntk in ((True, False), (False, True)):
        assert np.abs(formulas(ids, logn=logn, ntk=ntk) - plain).max() > 0.01


def test_with_a_cache_it_computes_the_same(folder: Path) -> None:
    model, ids = original(folder), torch.arange(40)[None]
    with torch.inference_mode():
        whole = model(ids).logits
        first = model(ids[:, :33], use_cache=True)
        parts = [first.logits, model(ids[:, 33:], past_key_values=first.past_key_values).logits]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)


def test_it_does_not_run_code_of_the_checkpoint(folder: Path) -> None:
    checkpoint = replace(open_checkpoint(folder), trust_remote_code=True)
    assert type(ref.empty_model(checkpoint)).__module__ == "mlxport.parity.qwen_original"
    assert not (folder.parent / "ran").exists()

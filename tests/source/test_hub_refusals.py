"""What config and headers tell is refused before weights are fetched from the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import REPO, HubServer

from checkpoints import config, save, weights, write_llama, write_side_files
from command import environment, finish, start
from mlxport.convert.open_source import checking, foreseeing
from mlxport.convert.resolved_options import ResolvedOptions
from mlxport.errors import MlxportError, UnsafeError, UnsupportedError, WeightsError
from mlxport.source.hub import open_repository

TEXT = {"model_type": "llava_next", "text_config": config(), "vision_config": {"model_type": "clip_vision_model"}}
TOWER = {"vision_tower.a.weight": np.ones((8, 4))}
NAMED = {f"language_model.{name}": array for name, array in weights().items()}
SHORT = {name: array for name, array in weights().items() if name != "model.norm.weight"}
CODE = {"model_type": "shy", "auto_map": {"AutoModelForCausalLM": "modeling_shy.Shy"}}

# what is wrong -> (changes of a llama's config, tensors, options, the class of the error, what it says)
Case = tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any], type[MlxportError], str]
REFUSED: dict[str, Case] = {
    "a part that is left out": (TEXT, NAMED | TOWER, {}, UnsupportedError, "without vision_tower"),
    "a tensor that is missing": ({}, SHORT, {}, WeightsError, "expects model.norm.weight"),
    "no such architecture": ({"model_type": "shy"}, weights(), {}, UnsupportedError, "no architecture 'shy'"),
    "code that is not trusted": (CODE, weights(), {}, UnsafeError, "code"),
    "another quantization": ({"quantization_config": {"quant_method": "hqq"}},
                             {**weights(), "model.norm.scales": np.ones(4)}, {}, UnsupportedError, "hqq"),
    "a text model that nobody has": (TEXT | {"model_type": "mllama", "text_config": {"model_type": "shy"}},
                                     NAMED | TOWER, {"text_only": True}, UnsupportedError, "--text-only"),
}  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(write_llama(tmp_path / "repository", shards=1)) as server:
        yield server


def give(hub: HubServer, changes: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    write_side_files(hub.folder, **changes)
    save(hub.folder / "model.safetensors", tensors)


def fetched_weights(cache: Path) -> list[Path]:
    return [*cache.rglob("*.safetensors")]


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_before_any_weights_are_here(hub: HubServer, case: str, tmp_path: Path) -> None:
    changes, tensors, given, kind, said = REFUSED[case]
    give(hub, changes, tensors)
    options, cache = ResolvedOptions(**given), tmp_path / "cache"
    with pytest.raises(kind, match=said):
        open_repository(
            REPO, check_config=checking(REPO, options), check_headers=foreseeing(options),
            endpoint=hub.endpoint, cache_dir=cache,
        )  # fmt: skip
    assert not fetched_weights(cache)


@pytest.mark.parametrize("ranges", [True, False])
def test_what_is_right_is_fetched_and_looked_at_once(hub: HubServer, ranges: bool, tmp_path: Path) -> None:
    hub.ranges, seen, cache = ranges, [], tmp_path / "cache"
    for _ in range(2):  # the second time, the weights are in the cache
        opened = open_repository(REPO, check_headers=seen.append, endpoint=hub.endpoint, cache_dir=cache)
    assert len(fetched_weights(cache)) == 1 and len(seen) == int(ranges)
    assert all(checkpoint.tensors.keys() == opened.tensors.keys() for checkpoint in seen)


def test_as_a_user_converts(hub: HubServer, tmp_path: Path) -> None:
    changes, tensors, *_ = REFUSED["a part that is left out"]
    give(hub, changes, tensors)
    env = environment(HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "home"))
    done = finish(start("convert", REPO, "out", env=env, cwd=tmp_path))
    assert done.code == 1 and "without vision_tower" in done.err and "--text-only" in done.err
    assert not fetched_weights(tmp_path / "home") and not (tmp_path / "out").exists()

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from little_llama import HIDDEN, LAYERS, VOCABULARY, llama_weights
from safetensors.numpy import save_file


@pytest.fixture(scope="session")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "vocab_size": VOCABULARY,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    weights = llama_weights()
    names = [*weights]
    shards = {
        "model-00001-of-00002.safetensors": names[:3],
        "model-00002-of-00002.safetensors": names[3:],
    }
    for file, held in shards.items():
        save_file({name: weights[name] for name in held}, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {name: file for file, held in shards.items() for name in held},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def sharded(_model: Path, tmp_path: Path) -> Path:
    """A tiny llama in two shards with an index, to be broken at will."""
    return Path(shutil.copytree(_model, tmp_path / "tiny"))


@pytest.fixture
def single(sharded: Path) -> Path:
    """The same in one model.safetensors, without an index."""
    for path in sharded.glob("model*"):
        path.unlink()
    save_file(llama_weights(), sharded / "model.safetensors", metadata={"format": "pt"})
    return sharded

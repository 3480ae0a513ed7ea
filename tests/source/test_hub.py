from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import COMMIT, REPO, HubServer
from safetensors.numpy import save_file

from command import environment, finish, start
from mlxport.errors import DiskError, MlxportError, SourceError, UnsupportedError, WeightsError
from mlxport.source import read_rows
from mlxport.source.hub import open_repository

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture
def hub(sharded: Path) -> Iterator[HubServer]:
    """A repository with everything that real ones hold beside what is needed."""
    for name in (
        "model-old.safetensors",
        "pytorch_model.bin",
        "model.gguf",
        "onnx/model.onnx",
        "original/consolidated.00.pth",
        "consolidated.safetensors",
        "tf_model.h5",
        "flax_model.msgpack",
        "modeling_tiny.py",
        "images/figure.png",
        ".gitattributes",
    ):
        (sharded / name).parent.mkdir(exist_ok=True)
        (sharded / name).write_bytes(b"not needed")
    (sharded / "chat_template.jinja").write_text("{{ messages }}")
    (sharded / "LICENSE").write_text("free")
    with HubServer(sharded) as server:
        yield server


def open_tiny(hub: HubServer, tmp_path: Path, **options: Any) -> Any:
    return open_repository(REPO, endpoint=hub.endpoint, cache_dir=tmp_path / "cache", **options)


def test_only_what_is_needed_is_fetched_and_config_first(hub: HubServer, tmp_path: Path) -> None:
    checkpoint = open_tiny(hub, tmp_path)
    assert hub.fetched()[0] == "config.json"
    side = ["LICENSE", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(hub.fetched()) == sorted(["config.json", "model.safetensors.index.json", *side, *SHARDS])
    assert [path.name for path in checkpoint.side_files] == side
    assert [path.name for path in checkpoint.weight_files] == SHARDS
    assert (checkpoint.repo_id, checkpoint.revision) == (REPO, COMMIT)
    for ref in checkpoint.tensors.values():
        assert ref.path.is_symlink()  # into the cache's blobs
        assert read_rows(ref).nbytes == ref.nbytes


def test_the_second_time_nothing_is_fetched(hub: HubServer, tmp_path: Path) -> None:
    open_tiny(hub, tmp_path)
    hub.requests.clear()
    open_tiny(hub, tmp_path, revision="main")
    assert hub.fetched() == []


def test_unsupported_architecture_is_refused_before_any_weights(hub: HubServer, tmp_path: Path) -> None:
    def check(config: Any) -> None:
        raise UnsupportedError(f"model type {config['model_type']} is not supported")

    with pytest.raises(UnsupportedError, match="model type llama"):
        open_tiny(hub, tmp_path, check_config=check)
    assert hub.fetched() == ["config.json"]
    assert hub.fetched("HEAD") == ["config.json"]


def test_python_files_only_when_trusted(hub: HubServer, tmp_path: Path) -> None:
    open_tiny(hub, tmp_path, trust_remote_code=True)
    assert "modeling_tiny.py" in hub.fetched()
    # What an earlier, trusting run has left in the cache is not picked up by one that does not trust.
    assert not [path for path in open_tiny(hub, tmp_path).side_files if path.suffix == ".py"]


def test_single_file_before_torch_file(hub: HubServer, single: Path, tmp_path: Path) -> None:
    checkpoint = open_tiny(hub, tmp_path)
    assert [path.name for path in checkpoint.weight_files] == ["model.safetensors"]
    assert "pytorch_model.bin" not in hub.fetched()
    assert "model-old.safetensors" not in hub.fetched()


def test_torch_file_where_there_is_nothing_else(hub: HubServer, sharded: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for path in sharded.glob("*.safetensors*"):
        path.unlink()
    torch.save({"model.layers.0.a": torch.ones(8), "model.layers.1.a": torch.ones(8)}, sharded / "pytorch_model.bin")
    checkpoint = open_tiny(hub, tmp_path)
    assert [path.name for path in checkpoint.weight_files] == ["pytorch_model.bin"]


def test_headers_only(hub: HubServer, tmp_path: Path) -> None:
    whole = open_tiny(hub, tmp_path)
    hub.requests.clear()
    checkpoint = open_repository(REPO, endpoint=hub.endpoint, cache_dir=tmp_path / "other", headers_only=True)
    assert {name: (ref.dtype, ref.shape, ref.offset) for name, ref in checkpoint.tensors.items()} == {
        name: (ref.dtype, ref.shape, ref.offset) for name, ref in whole.tensors.items()
    }
    assert not any(path.exists() for path in checkpoint.weight_files)
    assert not [name for name in hub.fetched("HEAD") if name in SHARDS]
    with pytest.raises(WeightsError, match=SHARDS[0]):
        read_rows(next(iter(checkpoint.tensors.values())))


def test_headers_longer_than_the_first_request(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxport.source.hub._FIRST_RANGE", 16)
    assert len(open_tiny(hub, tmp_path, headers_only=True).tensors) == 6


def test_headers_only_of_a_hub_without_ranges(hub: HubServer, tmp_path: Path) -> None:
    hub.ranges = False
    with pytest.raises(SourceError, match="only as a whole"):
        open_tiny(hub, tmp_path, headers_only=True)


def test_shard_missing_from_the_repository(hub: HubServer, sharded: Path, tmp_path: Path) -> None:
    (sharded / SHARDS[1]).unlink()
    with pytest.raises(WeightsError, match=SHARDS[1]):
        open_tiny(hub, tmp_path)
    assert not {*SHARDS} & {*hub.fetched()}


def test_index_that_leaves_the_repository(hub: HubServer, sharded: Path, tmp_path: Path) -> None:
    index = {"weight_map": {"a": "../../../../outside.safetensors"}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(MlxportError, match=r"outside\.safetensors"):
        open_tiny(hub, tmp_path)
    assert not {*SHARDS} & {*hub.fetched()}


def test_a_repository_of_open_clip(tmp_path: Path) -> None:
    folder = tmp_path / "open_clip"
    folder.mkdir()
    model = {"embed_dim": 8, "vision_cfg": {"width": 64, "layers": 1}, "text_cfg": {"width": 16, "heads": 2}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    save_file({"logit_scale": np.ones((), np.float32)}, folder / "open_clip_model.safetensors")
    with HubServer(folder) as server:
        checkpoint = open_tiny(server, tmp_path)
    assert server.fetched() == ["open_clip_config.json", "open_clip_model.safetensors"]
    assert checkpoint.config["model_type"] == "clip" and list(checkpoint.tensors) == ["logit_scale"]
    again = open_repository(REPO, endpoint="http://127.0.0.1:9", cache_dir=tmp_path / "cache")  # nothing listens there
    assert again.config == checkpoint.config


def test_repository_without_config(hub: HubServer, sharded: Path, tmp_path: Path) -> None:
    (sharded / "config.json").unlink()
    (sharded / "adapter_config.json").write_text("{}")
    with pytest.raises(SourceError, match="adapter-only"):
        open_tiny(hub, tmp_path)


def test_refusals_of_the_hub(hub: HubServer, tmp_path: Path) -> None:
    def refused(**options: Any) -> MlxportError:
        with pytest.raises(SourceError) as caught:
            open_repository(options.pop("repo", REPO), endpoint=hub.endpoint, cache_dir=tmp_path / "cache", **options)
        assert caught.value.hint
        return caught.value

    assert "no revision 'v9'" in refused(revision="v9").message
    assert "not a revision" in refused(revision="../main").message
    assert "neither a folder here nor a repository" in refused(repo="org/other").message
    assert "not a hub id" in refused(repo="org/tiny.git").message
    hub.gated = True
    error = refused()
    assert "gated" in error.message
    assert "hf auth login" in error.hint
    hub.status = 500
    assert "the hub refuses" in refused().message


def test_offline_uses_the_cache(hub: HubServer, tmp_path: Path) -> None:
    endpoint = "http://127.0.0.1:9"  # nothing listens there
    with pytest.raises(SourceError, match=r"not in the hub's cache, and the hub cannot be reached"):
        open_repository(REPO, endpoint=endpoint, cache_dir=tmp_path / "cache")
    online = open_tiny(hub, tmp_path, revision="main")
    offline = open_repository(REPO, "main", endpoint=endpoint, cache_dir=tmp_path / "cache")
    assert offline.revision == COMMIT
    assert offline.tensors == online.tensors


def test_a_disk_too_small_is_refused_before_the_weights(hub: HubServer, sharded: Path, tmp_path: Path) -> None:
    with (sharded / SHARDS[0]).open("ab") as file:
        file.truncate(1 << 60 if sys.platform == "darwin" else 1 << 43)  # sparse: it takes no space
    with pytest.raises(DiskError, match="GB are free"):
        open_tiny(hub, tmp_path)
    assert not {*SHARDS} & {*hub.fetched()}


def test_open_checkpoint_as_a_user_calls_it(hub: HubServer, tmp_path: Path) -> None:
    program = (
        "import sys, mlxport.source as s\n"
        "c = s.open_checkpoint(sys.argv[1])\n"
        "print(c.repo_id, c.revision, len(c.tensors), "
        "sum(s.read_rows(r).nbytes for r in c.tensors.values()) == c.nbytes)"
    )
    hub_of_ours = environment(HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "home"))
    done = finish(start(REPO, code=program, env=hub_of_ours, cwd=tmp_path))
    assert done.out.split() == [REPO, COMMIT, "6", "True"], done.err


def test_of_a_quantized_config_the_headers_decide_before_any_weights(hub: HubServer, tmp_path: Path) -> None:
    path = hub.folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    seen: list[Any] = []
    opened = open_tiny(hub, tmp_path, check_config=lambda config: seen.append((config, hub.fetched())))
    config, fetched = seen[0]
    assert "quantization_config" not in {**opened.config, **config}
    assert sorted(fetched) == sorted(["config.json", "model.safetensors.index.json", *SHARDS])  # of these, the headers

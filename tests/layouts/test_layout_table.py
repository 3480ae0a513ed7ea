"""A layout is a file and a line: one that is registered is chosen, written, recorded, verified by what it says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path, PurePath

import numpy as np
import pytest

import mlxport
from checkpoints import write_llama
from mlxport.cli.app import main
from mlxport.errors import UnsupportedError, UsageError
from mlxport.layouts import table
from mlxport.layouts.base import Layout, LayoutOptions, Refusal
from mlxport.layouts.conversion import Conversion
from mlxport.transform import trace
from mlxport.types import Checkpoint


@dataclasses.dataclass(frozen=True)
class ToyConversion(Conversion):
    """With a file of its own."""

    def write_files(self, folder: Path) -> set[str]:
        (folder / "toy.txt").write_text("toy")
        return {"toy.txt"}


def open_toy(checkpoint: Checkpoint, options: LayoutOptions) -> Conversion:
    """The checkpoint's tensors as they are, under a config of the toy's own."""
    program = trace(lambda arrays: arrays, checkpoint.tensors)
    config = {"model_type": "toy", "original": checkpoint.config["model_type"]}
    parameters = sum(ref.size for ref in checkpoint.tensors.values())
    return ToyConversion(program, config, "bfloat16", parameters, {}, {}, ("toys are not checked",))


TOY = Layout(
    name="toy",
    summary="the tensors as they are",
    opens=open_toy,
    claims=lambda config, names: False,
    refuses=(Refusal(("quantize", "calibrate"), "{given}: toys are not quantized", "leave it out"),),
    weights="toys",
    files=("toy.txt",),
    carries=lambda path: path == PurePath("tokenizer.json"),
    usage="## Play\n\nToys are played with.",
    task="feature-extraction",
)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Layout]:
    monkeypatch.setattr(table, "_table", dict(table._table))
    yield table.register(TOY)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("layouts") / "source", shards=1)


def run(*arguments: object) -> int:
    """The command line in this process, which knows the toy."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_a_registered_layout_is_converted_to(toy, source, tmp_path):
    out = tmp_path / "out"
    for overwrite in ([], ["--overwrite"]):
        assert run("convert", source, out, "--layout", "toy", "--quiet", *overwrite) == 0
    index = json.loads((out / "toys.safetensors.index.json").read_text())
    assert {*index["weight_map"].values()} == {"toys.safetensors"}
    files = {path.name for path in out.iterdir()}
    assert files == {
        "README.md", "config.json", "mlxport.json", "tokenizer.json", "toy.txt", "toys.safetensors",
        "toys.safetensors.index.json",
    }  # fmt: skip
    assert json.loads((out / "config.json").read_text()) == {"model_type": "toy", "original": "llama"}
    record = json.loads((out / "mlxport.json").read_text())
    assert record["options"]["layout"] == "toy" and "toys are not checked" in record["config_changes"]
    assert record["not_verified"] == "not verified: there is no comparison with the original for the layout toy"
    card = (out / "README.md").read_text()
    assert "Toys are played with." in card and "pipeline_tag: feature-extraction" in card


def test_the_tensors_of_the_toy_are_the_sources(toy, source, tmp_path):
    mlxport.convert(source, tmp_path / "out", layout="toy", verify="none", max_shard_size="100KB")
    written = sorted((tmp_path / "out").glob("toys-0000*-of-*.safetensors"))
    assert len(written) > 1
    made = {name: array for path in written for name, array in _bytes(path).items()}
    assert made == _bytes(source / "model.safetensors")


def _bytes(path: Path) -> dict[str, bytes]:
    import mlx.core as mx

    return {name: np.array(array.view(mx.uint8)).tobytes() for name, array in mx.load(str(path)).items()}


def test_what_a_layout_refuses(toy, source, tmp_path, capsys):
    for options, given in ((["-q", "4"], "--quantize"), (["--calibrate", "default"], "--calibrate default")):
        assert run("convert", source, tmp_path / "out", "--layout", "toy", *options) == UsageError.exit_code
        assert f"{given}" in (said := capsys.readouterr().err) and "toys are not quantized" in said
    with pytest.raises(UnsupportedError, match="no comparison with the original for the layout toy"):
        mlxport.convert(source, tmp_path / "out", layout="toy", verify="full")
    mlxport.convert(source, tmp_path / "made", layout="toy")
    with pytest.raises(UnsupportedError, match="the layout toy"):
        mlxport.verify(tmp_path / "made", source)


def test_claims_come_in_the_tables_order(toy, source, monkeypatch):
    config = json.loads((source / "config.json").read_text())
    assert table.chosen("auto", config).name == "mlx-lm"
    greedy = dataclasses.replace(TOY, claims=lambda config, names: "wheel" in names)
    others = {layout.name: layout for layout in table.layouts() if layout is not toy}
    monkeypatch.setattr(table, "_table", {"toy": greedy, **others})
    assert table.chosen("auto", config, {"wheel"}).name == "toy"
    assert table.chosen("auto", config, {"weight"}).name == "mlx-lm"
    assert table.chosen("auto", {"model_type": "nothing of the kind"}).name == "mlx-lm"  # none claims it
    assert "toy: the tensors as they are" in table.in_words()


def test_an_unknown_name_is_refused_everywhere(source, tmp_path, capsys):
    names = f"choose one of {', '.join(table.names())}"
    for options in ({}, {"dry_run": True}):
        with pytest.raises(UsageError, match="--layout 'mlx-lmm' does not exist") as refused:
            mlxport.convert(source, tmp_path / "out", layout="mlx-lmm", **options)
        assert refused.value.hint == names
    assert run("convert", source, tmp_path / "out", "--layout", "mlx-lmm") == UsageError.exit_code
    assert names in capsys.readouterr().err
    mlxport.convert(source, tmp_path / "out", verify="none")
    record = json.loads((tmp_path / "out" / "mlxport.json").read_text())
    record["options"]["layout"] = "mlx-lmm"
    (tmp_path / "out" / "mlxport.json").write_text(json.dumps(record))
    for use in (lambda: mlxport.verify(tmp_path / "out", source), lambda: mlxport.load(tmp_path / "out")):
        with pytest.raises(UsageError, match="'mlx-lmm' does not exist"):
            use()


def test_registering_twice_raises(toy):
    for name in ("toy", "mlx-lm", "auto"):
        with pytest.raises(ValueError, match=f"there is a layout '{name}' already"):
            table.register(dataclasses.replace(TOY, name=name))


def test_the_table_imports_nothing_large():
    import subprocess
    import sys

    code = "import sys, mlxport.layouts.table\nprint({'torch', 'mlx', 'mlx_lm', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"

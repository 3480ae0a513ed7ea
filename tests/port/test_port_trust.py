"""Source in a port's folder runs where this installation wrote it, or where it is trusted; nowhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

import mlxport as package
from checkpoints import edit_json
from mlxport.convert.verify import verify
from mlxport.errors import ConfigError, UnsafeError, UnsupportedError
from mlxport.quality.opened import open_output
from mlxport.run import AutoModelForCausalLM, chat, generate
from mlxport.source import written_code

FACTORY = f"{Path(__file__).parent / 'vocoder.py'}:dense"
EVIL = "\nfrom pathlib import Path\nPath(__file__).with_name('ran').touch()\n"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A port as ``mlxport port`` leaves it."""
    destination = tmp_path_factory.mktemp("ports") / "dense"
    package.port_folder(FACTORY, destination)
    return destination


@pytest.fixture
def another_process(monkeypatch):
    monkeypatch.setattr(written_code, "_just_written", set())


@pytest.fixture
def tampered(written, tmp_path, another_process):
    folder = Path(shutil.copytree(written, tmp_path / "tampered"))
    with open(folder / "model.py", "a") as file:
        file.write(EVIL)
    return folder


USES = {
    "load": lambda folder, **trust: package.load(folder, **trust),
    "verify": lambda folder, **trust: verify(folder, FACTORY, **trust),
    "generate": lambda folder, **trust: generate(folder, "hello", **trust),
    "chat": lambda folder, **trust: chat(folder, **trust),
    "auto": lambda folder, **trust: AutoModelForCausalLM.from_pretrained(folder, **trust),
    "quality": lambda folder, **trust: open_output(folder, **trust),
    "report": lambda folder, **trust: package.quality_report(folder, FACTORY, **trust),
}


@pytest.mark.parametrize("use", USES)
def test_changed_source_does_not_run(use, tampered):
    with pytest.raises(UnsafeError, match=r"model\.py is code that this installation") as caught:
        USES[use](tampered)
    assert "--trust-remote-code" in caught.value.hint
    assert not (tampered / "ran").exists()


@pytest.mark.parametrize("use", ["generate", "chat", "auto", "quality"])
def test_no_use_of_mlx_lm_runs_it_even_if_trusted(use, tampered):
    """A port has no cache: what is trusted is refused for what it is, and not run on the way."""
    with pytest.raises(UnsupportedError):
        USES[use](tampered, trust_remote_code=True)
    assert not (tampered / "ran").exists()


def test_trusted_source_runs(tampered):
    assert package.load(tampered, trust_remote_code=True)(mx.zeros((1, 64))).shape == (1, 32)
    assert (tampered / "ran").exists()
    assert verify(tampered, FACTORY, trust_remote_code=True).passed


def test_a_folder_may_be_moved_and_its_record_lost(written, tmp_path, another_process):
    folder = Path(shutil.copytree(written, tmp_path / "elsewhere"))
    assert verify(folder, FACTORY).passed
    for name in ("mlxport.json", "README.md"):
        (folder / name).unlink()
    assert package.load(folder)(mx.zeros((1, 64))).shape == (1, 32)


@pytest.mark.parametrize("layout", ["generated", "mlx-lm", None])
@pytest.mark.parametrize("name", ["other.py", "model.py"])
def test_neither_record_nor_config_vouches(layout, name, tampered):
    """Whatever a folder says of itself."""
    if name != "model.py":
        (tampered / "model.py").rename(tampered / name)
    edit_json(tampered / "config.json", model_file=name)
    if layout is None:
        (tampered / "mlxport.json").unlink()
    else:
        record = json.loads((tampered / "mlxport.json").read_text())
        edit_json(tampered / "mlxport.json", options={**record["options"], "layout": layout})
    for use in USES.values():
        with pytest.raises(package.SourceError):
            use(tampered)
    assert not (tampered / "ran").exists()


def test_byte_code_beside_own_source_is_not_taken(written, tmp_path, another_process):
    import py_compile

    folder = Path(shutil.copytree(written, tmp_path / "copied"))
    evil = folder / "evil.py"
    evil.write_text((folder / "model.py").read_text() + EVIL)
    cached = folder / "__pycache__" / "model.cpython-311.pyc"
    py_compile.compile(str(evil), cfile=str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    evil.unlink()
    assert package.load(folder)(mx.zeros((1, 64))).shape == (1, 32)
    assert not (folder / "ran").exists() and not (cached.parent / "ran").exists()


def test_the_command_line_says_what_it_sees(written, tampered, mlxport):
    ours, theirs = (mlxport("inspect", folder).out for folder in (written, tampered))
    assert "model.py builds the model (model_file in config.json): this installation wrote it" in ours
    assert "this installation did not write it, it runs only with --trust-remote-code" in theirs
    result = mlxport("verify", tampered, "--against", FACTORY)
    assert result.code == 1 and "model.py" in result.err and "--trust-remote-code" in result.err
    assert not (tampered / "ran").exists()


def test_such_a_folder_is_no_source(source, tmp_path, mlxport):
    edit_json(source / "config.json", model_file="evil.py")
    (source / "evil.py").write_text(EVIL)
    for trust in ((), ("--trust-remote-code",)):
        result = mlxport("convert", source, tmp_path / "out", "--verify", "none", *trust)
        assert result.code == 1 and "model_file" in result.err and "delete model_file" in result.err
    assert not (source / "ran").exists()


@pytest.mark.parametrize("layout", ["auto", "mlx-lm", "generated"])
@pytest.mark.parametrize("kind", ["llama", "vit", "port"])
def test_a_port_is_converted_no_second_time(written, kind, layout, tmp_path, mlxport):
    """Whether mlx-lm, transformers, or nobody has its kind: its weights are those of its own source."""
    folder = Path(shutil.copytree(written, tmp_path / "a port"))
    edit_json(folder / "config.json", model_type=kind)
    result = mlxport("convert", folder, tmp_path / "out", "--verify", "none", "--layout", layout)
    assert result.code == 1 and "built by code of its own for MLX" in result.err, result
    assert f"how this folder is used says: mlxport inspect '{folder}'" in result.err
    assert "delete" not in result.err and not (tmp_path / "out").exists()
    facts = mlxport("inspect", folder)
    assert "call it from Python: mlxport.load(" in facts.out and "nothing is wrong with it" in facts.out, facts
    assert "no such architecture" not in facts.out and "convert writes" not in facts.out


@pytest.mark.parametrize("flags", [(), ("--quiet",), ("--json",)], ids=" ".join)
def test_a_cache_that_cannot_be_written_is_said(flags, tmp_path, monkeypatch, mlxport):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLXPORT_CACHE", str(tmp_path / "file"))
    result = mlxport("port", FACTORY, tmp_path / "out", *flags)
    last = result.err.splitlines()[-1]
    assert result.code == 0 and last.startswith("warning: model.py could not be noted")
    assert f"{tmp_path}/file/written-code cannot be written" in last
    assert "loading it takes --trust-remote-code" in last and "set MLXPORT_CACHE to" in last
    if "--json" in flags:
        assert json.loads(result.out)["warnings"] == [last.removeprefix("warning: ")]
    # What it says to do works.
    monkeypatch.setattr(written_code, "_just_written", set())
    with pytest.raises(UnsafeError):
        package.load(tmp_path / "out")
    package.load(tmp_path / "out", trust_remote_code=True)
    monkeypatch.setenv("MLXPORT_CACHE", str(tmp_path / "cache"))
    assert "warning" not in mlxport("port", FACTORY, tmp_path / "out", "--overwrite", *flags).err
    monkeypatch.setattr(written_code, "_just_written", set())
    package.load(tmp_path / "out")


def test_counts_that_its_weights_do_not_hold_are_refused_before_any_is_made(written, tmp_path):
    folder = Path(shutil.copytree(written, tmp_path / "many"))
    edit_json(folder / "config.json", num_layers=2000)
    with pytest.raises(ConfigError, match="num_layers is 2000"):
        package.load(folder)

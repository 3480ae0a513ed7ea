"""``mlxport port`` and what it leaves: the folder is whole, runs by itself, and is verified again later."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from torch import nn

import mlxport as package
from checkpoints import hash_tree
from mlxport.convert import steps
from mlxport.convert.verify import verify
from mlxport.errors import SourceError, VerificationError

FILE = Path(__file__).parent / "vocoder.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The vocoder as ``mlxport port`` leaves it."""
    destination = tmp_path_factory.mktemp("ports") / "vocoder"
    package.port_folder(f"{FILE}:make", destination, mlxfn=True)
    return destination


def reference(*shape):
    sys.path.insert(0, str(FILE.parent))
    from vocoder import make

    module, _ = make()
    mel = torch.randn(*shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return mel, {name: value.numpy() for name, value in module(mel).items()}


def test_files(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "README.md", "config.json", "example_inputs.safetensors", "example_outputs.safetensors", "mlxport.json",
        "model.mlxfn", "model.py", "model.safetensors", "model.safetensors.index.json",
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert config["model_file"] == "model.py" and config["model_type"] == "vocoder"
    record = json.loads((folder / "mlxport.json").read_text())
    assert record["verified"] and record["options"]["layout"] == "generated"
    assert {row["inputs"] for row in record["parity"]["comparisons"]} == {"example", "other sizes"}


def test_load_at_another_size(folder):
    model = package.load(folder)
    mel, wanted = reference(3, 8, 19)
    got = model(mx.array(mel.numpy()))
    assert list(got) == ["audio", "features"]
    for name, value in wanted.items():
        assert np.abs(np.array(got[name]) - value).max() < 1e-5
    with pytest.raises(ValueError, match="mel must be an mx.array of shape"):
        model(mx.zeros((3, 9, 19)))
    with pytest.raises(ValueError, match=r"gain=0\.5: this port was made with gain=1\.0"):
        model(mx.array(mel.numpy()), gain=0.5)


def test_loading_writes_nothing(tmp_path):
    package.port_folder(f"{FILE}:dense", tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    package.load(tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_equal_ports_are_equal_wherever_they_are_made(folder, tmp_path, monkeypatch):
    """Also their cards, and nothing but what MLX compiles goes through the folder for temporary files."""
    here, seen = tmp_path / "temporary", []
    here.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(here))
    for number, step in enumerate(steps.STEPS):
        look = (lambda state: seen.extend(here.rglob("*")), step)
        monkeypatch.setattr(steps, "STEPS", (*steps.STEPS[: 2 * number], *look, *steps.STEPS[2 * number + 1 :]))
    package.port_folder(f"{FILE}:make", tmp_path / "vocoder", mlxfn=True)
    one, other = hash_tree(tmp_path / "vocoder"), hash_tree(folder)
    assert seen == [] and one.keys() == other.keys()
    differing = {name for name in one if one[name] != other[name]}
    assert differing <= {"model.mlxfn"}  # MLX numbers its arrays through the process
    card = (folder / "README.md").read_text()
    assert "# `Vocoder` for MLX" in card and "from a PyTorch module of the class `Vocoder`." in card


def test_a_port_that_was_killed_goes_on(forks, tmp_path):
    command = ("port", f"{FILE}:dense", tmp_path / "out", "--max-shard-size", "1KB")
    events = forks.run(*command, watch=tmp_path / "out")
    assert events["code"] == 0, events
    whole = hash_tree(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    assert forks.run(*command, watch=tmp_path / "out", kill_on="model-00003")["code"] == -signal.SIGKILL
    again = forks.run(*command, watch=tmp_path / "out")
    assert again["code"] == 0 and "resumed: 2 of" in again["stderr"], again
    assert hash_tree(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("module", "inputs", "dtype"),
    [(nn.Linear(4, 3).double(), torch.randn(2, 4).double(), "float32"),
     (nn.Softmax(-1), torch.randn(64, 64).bfloat16(), "bfloat16")],
    ids=["float64", "the inputs', of a module without weights"],
)  # fmt: skip
def test_the_dtype_that_is_verified(module, inputs, dtype, tmp_path):
    report = package.port_folder(lambda: (module, (inputs,)), tmp_path / "out")
    assert report.parity.passed and report.parity.dtype == report.plan.dtype == dtype
    package.port(module, (inputs,))


def test_example_is_reproduced(folder):
    inputs = mx.load(str(folder / "example_inputs.safetensors"))
    outputs = mx.load(str(folder / "example_outputs.safetensors"))
    got = package.load(folder)(**inputs)
    assert set(outputs) == {"audio", "features"}
    assert all(mx.allclose(got[name], outputs[name], atol=1e-6) for name in outputs)
    exported = mx.import_function(str(folder / "model.mlxfn"))
    order = json.loads((folder / "config.json").read_text())["mlxfn"]
    assert order == {"inputs": ["mel"], "outputs": ["audio", "features"]}
    for ours, name in zip(exported(inputs["mel"]), order["outputs"], strict=True):
        assert mx.allclose(ours, outputs[name], atol=1e-5)


def test_runs_with_nothing_but_mlx(folder, tmp_path):
    """A plain import of model.py in an environment without torch, transformers, numpy or mlxport."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    (packages,) = (tmp_path / "bare").glob("lib/python*/site-packages")
    installed = Path(mx.__file__).parents[1]
    (packages / "mlx").symlink_to(installed / "mlx")
    code = (
        "import importlib.util as u\n"
        "assert not any(u.find_spec(name) for name in ('torch', 'transformers', 'mlxport', 'numpy', 'mlx_lm'))\n"
        "import mlx.core as mx\n"
        "from model import load\n"
        "model = load()\n"
        "inputs = mx.load('example_inputs.safetensors')\n"
        "outputs = mx.load('example_outputs.safetensors')\n"
        "got = model(**inputs)\n"
        "assert all(mx.allclose(got[k], v, atol=1e-5) for k, v in outputs.items())\n"
        "print('ran')\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL"))}
    command = [str(tmp_path / "bare" / "bin" / "python"), "-c", code]
    result = subprocess.run(
        command, cwd=folder, env={**environment, "PYTHONPATH": str(folder)}, capture_output=True, text=True
    )
    assert result.stdout == "ran\n", result.stderr


def test_source_is_clean_and_readable(folder):
    source = (folder / "model.py").read_text()
    for rules in (["check", "--isolated", "--select", "E,F,I,B,UP", "--line-length", "120"], ["format", "--isolated",
                  "--check", "--line-length", "120"]):  # fmt: skip
        subprocess.run([sys.executable, "-m", "ruff", *rules, "-"], input=source, text=True, check=True)
    assert "class ResidualUnit(nn.Module)" in source and "for unit in self.units" in source
    assert "weight_g" not in source and "parametrizations" not in source


def test_quantized(tmp_path, mlxport):
    result = mlxport("port", f"{FILE}:dense", tmp_path / "out", "-q", "8", "--group-size", "32", "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["plan"]["quantized_modules"] == 2 and report["verified"]
    model = package.load(tmp_path / "out")
    assert {name for name, _ in tree_flatten(model.parameters())} >= {"layers.0.scales", "layers.2.scales"}


def test_half_precision(tmp_path):
    report = package.port_folder(f"{FILE}:make", tmp_path / "out", dtype="bfloat16")
    assert report.parity is not None and report.parity.passed and report.plan.dtype == "bfloat16"
    weights = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert {array.dtype for array in weights.values()} == {mx.bfloat16}


def test_batchnorm_is_folded(tmp_path, mlxport):
    explained = mlxport("port", f"{FILE}:make", tmp_path / "out", "--fold-batchnorm", "--explain")
    assert explained.code == 0, explained.err
    assert "BatchNorm norm is not folded: what comes before it is not a convolution" in explained.out
    assert "upsample.weight from" in explained.out and "aten.conv1d.default" in explained.out


def test_verify_again(folder, tmp_path, mlxport):
    assert mlxport("verify", folder, "--against", f"{FILE}:make").code == 0
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in filter(Path.is_file, folder.iterdir()):
        (broken / path.name).write_bytes(path.read_bytes())
    weights = mx.load(str(broken / "model.safetensors"))
    mx.eval(weights)
    weights["units.1.conv.weight"] *= 1.2
    mx.save_safetensors(str(broken / "model.safetensors"), weights, {"format": "mlx"})
    result = mlxport("verify", broken, "--against", f"{FILE}:make")
    assert result.code == VerificationError.exit_code
    assert "first diverging module: units.1.conv" in result.err and "units.1.conv.weight" in result.err
    weights["units.1.conv.weight"] = mx.zeros((1,))
    mx.save_safetensors(str(broken / "model.safetensors"), weights, {"format": "mlx"})
    assert "does not load" in mlxport("verify", broken, "--against", f"{FILE}:make").err


def test_verify_says_in_json_which_weights_differ(tmp_path, mlxport):
    """Also of a weight whose part in the outputs is too small to see."""
    package.port_folder(f"{FILE}:dense", tmp_path / "out")
    path = str(tmp_path / "out" / "model.safetensors")
    weights = {name: mx.array(np.array(array)) for name, array in mx.load(path).items()}
    weights["layers.0.weight"][0, 0] += 1e-4
    mx.save_safetensors(path, weights, {"format": "mlx"})
    result = mlxport("verify", tmp_path / "out", "--against", f"{FILE}:dense", "--json")
    report = json.loads(result.out)
    assert result.code == VerificationError.exit_code and not report["passed"]
    assert report["problems"] == ["stored weights differ from the original's: layers.0.weight"]


def batchnorm():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    module[1].running_mean += 0.5
    return module, (torch.randn(2, 3, 8, 8),)


@pytest.mark.parametrize("options", [{"fold_batchnorm": True}, {"dynamic": False}], ids=str)
def test_verify_again_captures_as_before(options, tmp_path):
    package.port_folder(batchnorm, tmp_path / "out", **options)
    code = f"import sys; sys.path.insert(0, {str(FILE.parent)!r})\nfrom test_port_folder import batchnorm as make\n"
    (tmp_path / "module.py").write_text(code)
    report = verify(tmp_path / "out", f"{tmp_path / 'module.py'}:make")
    assert report.passed, report.failure_message()
    names = {name for name, _ in tree_flatten(package.load(tmp_path / "out").parameters())}
    assert any("running" in name for name in names) is not options.get("fold_batchnorm", False)


def test_of_a_folder_without_a_record_the_config_tells_the_layout(tmp_path):
    package.port_folder(batchnorm, tmp_path / "out", verify="none")
    (tmp_path / "out" / "mlxport.json").unlink()
    code = f"import sys; sys.path.insert(0, {str(FILE.parent)!r})\nfrom test_port_folder import batchnorm as make\n"
    (tmp_path / "module.py").write_text(code)
    assert verify(tmp_path / "out", f"{tmp_path / 'module.py'}:make").passed


def shifted_sine(x):
    return mx.cos(x)


def test_a_wrong_op_is_named(tmp_path):
    """An override that computes something else is found, module and op."""
    from mlxport.graph.lower.registry import LOWERINGS

    kept = LOWERINGS["aten.sin.default"]
    try:
        package.register_op("aten::sin")(shifted_sine)
        with pytest.raises(VerificationError) as caught:
            package.port_folder(f"{FILE}:make", tmp_path / "out")
    finally:
        LOWERINGS["aten.sin.default"] = kept
    assert "first diverging module: units.0.snake" in caught.value.message
    assert "aten.sin.default" in caught.value.message and "vocoder.py:" in caught.value.message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("factory", "code", "parts"),
    [
        ("nothing", 2, ["has no function nothing", "make"]),
        ("module_alone", 2, ["returns Vocoder", "(module, args)"]),
        ("broken", 1, ["no such checkpoint"]),
        ("branches", 1, ["data-dependent", "vocoder.py:"]),
        ("unknown", 1, ["vocoder.mystery.default", "(2 times", "vocoder.py:", "register_op"]),
        ("misfit", 2, ["do not fit Vocoder.forward"]),
    ],
)
def test_errors(factory, code, parts, tmp_path, mlxport):
    result = mlxport("port", f"{FILE}:{factory}", tmp_path / "out")
    assert result.code == code
    assert result.err.splitlines()[0].startswith("error: ") and "Traceback" not in result.err
    assert all(part in result.err for part in parts), result.err
    assert list(tmp_path.iterdir()) == []


def test_other_errors(tmp_path, mlxport):
    assert "not of the form" in mlxport("port", "vocoder", tmp_path / "out").err
    assert "no such file" in mlxport("port", tmp_path / "none.py:make", tmp_path / "out").err
    (tmp_path / "bad.py").write_text("import nonsense_that_is_not_there\n")
    assert "does not run" in mlxport("port", f"{tmp_path / 'bad.py'}:make", tmp_path / "out").err
    assert "DST is missing" in mlxport("port", f"{FILE}:make").err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    refused = mlxport("port", f"{FILE}:make", tmp_path / "out", "--overwrite")
    assert refused.code != 0 and (tmp_path / "out" / "mine.txt").read_text() == "kept"
    with pytest.raises(SourceError):
        package.load(tmp_path)

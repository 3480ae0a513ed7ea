"""Files and functions that make the module: the module is found, or one error says why it is not."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mlxport as package
from mlxport.errors import MlxportError
from mlxport.layouts.generated.own_module import load_factory

NET = """
import torch
from torch import nn
x = torch.ones(2, 4)
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
"""


MUTE = """
class Mute(Exception):
    def __str__(self): raise KeyError
"""


@pytest.fixture
def file(tmp_path):
    def write(text, name="given.py", before=NET):
        (tmp_path / name).write_text(before + text)
        return tmp_path / name

    kept = list(sys.path)
    yield write
    sys.path[:] = kept


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys\ndef make(): sys.exit(0)", "make calls sys.exit(0)"),
        ("import sys\ndef make(): sys.exit()", "make calls sys.exit()"),
        ("def make(): raise SystemExit('usage: train')", "make calls sys.exit('usage: train')"),
        ("def make(): exit(3)", "make calls sys.exit(3)"),
        ("import sys\nsys.exit(0)", "does not run: it calls sys.exit(0)"),
        ("import argparse\nargparse.ArgumentParser().parse_args(['--nothing'])", "does not run: it calls sys.exit(2)"),
        ("class M(nn.Module):\n    def forward(self, x): raise SystemExit(0)\ndef make(): return M(), x", "SystemExit"),
        ("def make(): raise KeyError('no')", "make raises KeyError: 'no'"),
        ("def make(): return net", "make returns function, expected (module, args)"),
        ("def make(): return net(), x, x", "positional arguments twice"),
        ("def make(): return net(), {'input': x}, {'input': x}", "keyword arguments (a dict) twice"),
        ("def make(): return net(), x.numpy()", "a NumPy array of shape (2, 4), expected torch tensors"),
        ("def make(): return net(), {'nothing': x}", "do not fit"),
        ("def make(): return net(), {1: x}", "1 for a name"),
        ("def make(): return net, x", "expected a torch.nn.Module, got function"),
        ("class Own(BaseException): ...\ndef make(): raise Own('mine')", "make raises Own: mine"),
        ("class Own(BaseException): ...\nraise Own('mine')", "does not run: Own: mine"),
        ("def make(): raise GeneratorExit", "make raises GeneratorExit"),
        (f"{MUTE}def make(): raise Mute", "make raises Mute: (its __str__ raises KeyError)"),
        (f"{MUTE}raise Mute", "does not run: Mute: (its __str__ raises KeyError)"),
        (
            f"{MUTE}class M(nn.Module):\n    def forward(self, x): raise Mute\ndef make(): return M(), x",
            "M does not take the example inputs; in torch it raises Mute: (its __str__ raises KeyError)",
        ),
        (
            "class Own(BaseException): ...\nclass M(nn.Module):\n    def forward(self, x): raise Own\n"
            "def make(): return M(), x",
            "M does not take the example inputs; in torch it raises Own",
        ),
        ("async def make(): return net(), x", "make returns a coroutine (async def), expected (module, args)"),
        ("async def other(): return net(), x\nmake = lambda: other()", "make returns a coroutine (async def)"),
        ("def make(size, *, kind): return net(), x", "make needs arguments (size, kind), a factory takes none"),
        ("class make(nn.Module):\n    def forward(self, x): return x", "no function make: it is a class, expected"),
        ("make = net()", "no function make: it is a module, expected"),
    ],
)
def test_errors(text, said, file, tmp_path):
    with pytest.raises(MlxportError) as caught:
        package.port_folder(f"{file(text)}:make", tmp_path / "out", dry_run=True)
    assert said in caught.value.message and caught.value.hint and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "returned", ["net(), x", "net(), [x]", "net(), (x,)", "net(), {'input': x}", "net(), (), {'input': x}"]
)
def test_examples(returned, file):
    module, *inputs = load_factory(f"{file(f'def make(): return {returned}')}:make")()
    assert "check_inputs" in package.port(module, *inputs).source


@pytest.mark.parametrize(
    "wrapped",
    [
        "torch.compile(net())",
        "nn.DataParallel(net())",
        "nn.DataParallel(torch.compile(net()))",
        "torch.optim.swa_utils.AveragedModel(net())",
        "Holds(torch.compile(net()))",
        "Holds(Holds(nn.DataParallel(net())))",
        "compiled()",
    ],
)
def test_wrappers_leave_no_trace(wrapped, file):
    text = """
class Holds(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
    def forward(self, input):
        return self.inner(input)
def compiled():
    module = net()
    module.forward = torch.compile(module.forward)
    return module
"""
    made, expected = (
        f"def make(): return {what}.eval(), x"
        for what in (wrapped, wrapped.replace("torch.compile", "").replace("nn.DataParallel", ""))
    )
    module, example = load_factory(f"{file(text + made)}:make")()
    kept = type(module)
    source = package.port(module, example).source
    assert type(module) is kept and not any(word in source for word in ("orig_mod", "DataParallel", "self.module"))
    if "swa_utils" not in wrapped and "compiled" not in wrapped:
        module, example = load_factory(f"{file(text + expected, 'plain.py')}:make")()
        assert package.port(module, example).source == source


@pytest.mark.parametrize(
    "given",
    [
        "torch.jit.script(net())",
        "torch.jit.trace(net(), x)",
        "nn.Sequential(torch.jit.script(net()))",
        "nn.DataParallel(torch.jit.trace(net(), x))",
    ],
)
def test_torchscript_is_named(given, file, tmp_path):
    with pytest.raises(MlxportError, match=r"TorchScript \(torch.jit.script") as caught:
        package.port_folder(f"{file(f'def make(): return {given}, x')}:make", tmp_path / "out")
    assert "nn.Module that it was made from" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["json.py", "torch.py", "mlx.py", "numpy.py", "queue.py", "my-model.v2.py", "types.py"]
)
def test_names_of_other_modules(name, file, tmp_path):
    """In a process of its own, where little is imported before the file is."""
    path = file("import json, mlx.core, numpy\nfrom beside import two\ndef make(): return net(), two(x)", name)
    (tmp_path / "beside.py").write_text("def two(x): return x + 1\n")
    code = (
        "import sys; from mlxport.port.into_folder import port_folder\n"
        f"report = port_folder({str(path)!r} + ':make', {str(tmp_path / 'out')!r})\n"
        "import json, queue, torch, mlx.core, mlxport\n"
        f"assert all(str(sys.modules[name].__file__) != {str(path)!r} for name in ('json', 'queue', 'torch'))\n"
        f"assert mlxport.load({str(tmp_path / 'out')!r}) is not None and report.parity.passed\n"
    )
    if name in ("json.py", "queue.py"):  # one that is imported early, one that is imported late
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, done.stderr
    else:
        package.port_folder(f"{path}:make", tmp_path / "out", verify="none")


def test_a_file_without_a_factory(file, tmp_path, mlxport):
    path = file("def make(): return net(), x\ndef other(kind='small'): ...\ndef train(epochs): ...\nraise ValueError")
    for given in (path, f"{path}:", f"{path}:a.b"):
        result = mlxport("port", given, tmp_path / "out")
        assert result.code == 2 and "is not of the form FILE.py:FACTORY" in result.err
        assert f"{path}:net or {path}:make or {path}:other" in result.err and "train" not in result.err


def test_only_what_could_be_a_factory_is_named(file):
    path = file(
        "import functools\nfrom torch.nn.functional import relu\n"
        "class Model(nn.Module):\n    def __init__(self, size=4): super().__init__()\n"
        "class Failure(Exception): ...\n"
        "class Makes:\n    def __call__(self): return net(), x\n"
        "def make(size=4): return net(), x\ndef train(epochs): ...\nasync def serve(): ...\n"
        "def keyed(*, size): ...\nmakes = Makes()\nshort = lambda: (net(), x)\nmodel = Model()\nlimit = 3\n"
    )
    for given in ("absent", "limit", "Model", "model"):
        with pytest.raises(MlxportError, match=f"{path} has no function {given}") as caught:
            load_factory(f"{path}:{given}")
        assert caught.value.hint == "give one of net, make, makes, short"
    with pytest.raises(MlxportError) as caught:
        load_factory(str(path))
    assert caught.value.hint.endswith(f": {path}:net or {path}:make")


def test_the_hint_of_a_file_of_classes(tmp_path):
    (tmp_path / "model.py").write_text("from torch import nn\nclass Tiny(nn.Module): ...\n")
    with pytest.raises(MlxportError) as caught:
        load_factory(f"{tmp_path / 'model.py'}:Tiny")
    assert "def make(): return Tiny(), (torch.randn(1, 3),)" in caught.value.hint

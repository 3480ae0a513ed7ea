"""A hint that names a command names one that works: what it says is typed here, with the input that was refused."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import pytest
import torch
import transformers
import typer

import mlxport as package
from checkpoints import save, weights, write_side_files
from command import Result
from mlxport.cli.app import app

Run = Callable[..., Result]
FACTORY = """\
import torch

def make():
    module = torch.nn.Linear(4, 2)
    module.load_state_dict(torch.load({weights!r}, weights_only=True))
    return module, (torch.ones(3, 4),)
"""


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "a bert"
    sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=64)
    transformers.BertModel(transformers.BertConfig(**sizes)).eval().save_pretrained(folder)
    return folder


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """The weights of a module, and a file with the function that makes it."""
    path = tmp_path / "weights.pt"
    torch.save(torch.nn.Linear(4, 2).state_dict(), path)
    (tmp_path / "factory.py").write_text(FACTORY.format(weights=str(path)))
    return path


def hint_of(result: Result) -> str:
    assert result.code != 0 and "bug in mlxport" not in result.err, result
    (hint,) = [line for line in result.err.splitlines() if line.startswith("hint: ")]
    return hint.removeprefix("hint: ")


def commands_in(hint: str, folder: Path) -> list[list[str]]:
    """The commands of a hint as they are typed: DST is a folder, FILE.py:FACTORY the function that was asked for."""
    found = [shlex.split(match) for match in re.findall(r"mlxport (?=convert|port|inspect)([^;]+)", hint)]
    places = {"DST": str(folder / "out"), "FILE.py:FACTORY": f"{folder / 'factory.py'}:make"}
    return [[places.get(word, word) for word in words] for words in found]


def check_works(run: Run, hint: str, folder: Path) -> None:
    commands = commands_in(hint, folder)
    assert commands, hint
    for number, words in enumerate(commands):
        words = [f"{word}{number}" if word == str(folder / "out") else word for word in words]
        done = run(*words)
        assert done.code == 0, (words, done)


def test_an_architecture_that_mlx_lm_does_not_have(bert: Path, tmp_path: Path, mlxport: Run) -> None:
    hint = hint_of(mlxport("convert", bert, tmp_path / "x", "--layout", "mlx-lm"))
    planned = mlxport("plan", bert, "--device", "M2 8GB").out
    (line,) = [line for line in planned.splitlines() if line.startswith("to convert: ")]
    assert commands_in(line, tmp_path) == commands_in(hint, tmp_path)
    check_works(mlxport, hint, tmp_path)
    refused = hint_of(mlxport("generate", tmp_path / "out0", "--prompt", "a"))
    assert "--layout" not in refused
    (call,) = re.findall(r"mlxport\.(load\('.*?'\))\(\.\.\.\)", refused)
    model = eval(f"package.{call}", {"package": package})
    assert model(**mx.load(str(tmp_path / "out0" / "example_inputs.safetensors"))) is not None


def test_a_language_model_is_sent_to_the_layout_that_generates(tmp_path: Path, mlxport: Run) -> None:
    write_side_files(tmp_path / "m", 1)
    save(tmp_path / "m" / "model.safetensors", weights(1), "F32")
    whole = ("--layout", "generated", "--no-cache", "--verify", "none")
    assert mlxport("convert", tmp_path / "m", tmp_path / "port", *whole).code == 0
    assert "--layout mlx-lm" in hint_of(mlxport("generate", tmp_path / "port", "--prompt", "a"))
    assert mlxport("convert", tmp_path / "m", tmp_path / "o", "--layout", "mlx-lm", "--verify", "none").code == 0


def test_a_classifier(tmp_path: Path, mlxport: Run) -> None:
    folder = tmp_path / "m"
    write_side_files(folder, 1, architectures=["LlamaForSequenceClassification"], pad_token_id=0)
    arrays = weights(1)
    arrays["score.weight"] = arrays.pop("lm_head.weight")[:2]
    save(folder / "model.safetensors", arrays, "F32")
    hint = hint_of(mlxport("convert", folder, tmp_path / "x"))
    (option,) = re.findall(r"add (--layout \w+)", hint)
    assert mlxport("convert", folder, tmp_path / "out", "--verify", "none", *option.split()).code == 0


def test_a_pipeline_of_diffusers_and_its_parts(bert: Path, linear: Path, tmp_path: Path, mlxport: Run) -> None:
    folder = tmp_path / "pipeline"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "AudioLDM2Pipeline"}')
    (folder / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel", "sample_size": 8}')
    (folder / "text_encoder").symlink_to(bert)
    hint = hint_of(mlxport("convert", folder, tmp_path / "x"))
    assert len(commands_in(hint, tmp_path)) == 2
    check_works(mlxport, hint, tmp_path)
    unet = hint_of(mlxport("convert", folder / "unet", tmp_path / "x"))
    assert "diffusers.UNet2DConditionModel.from_pretrained" in unet and "llama" not in unet
    assert commands_in(unet, tmp_path) == [["port", f"{tmp_path / 'factory.py'}:make", str(tmp_path / "out")]]


@pytest.mark.parametrize("name", ["weights.pt", "model.onnx", "arrays.npz", "model.h5"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_file_of_weights_needs_no_tokenizer(
    name: str, alone: bool, linear: Path, tmp_path: Path, mlxport: Run
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / name).write_bytes(linear.read_bytes())
    hint = hint_of(mlxport("convert", folder / name if alone else folder, tmp_path / "x"))
    assert "tokenizer" not in hint
    assert commands_in(hint, tmp_path) == [["port", f"{tmp_path / 'factory.py'}:make", str(tmp_path / "out")]]


def test_the_command_for_a_module_of_ones_own(linear: Path, tmp_path: Path, mlxport: Run) -> None:
    check_works(mlxport, hint_of(mlxport("convert", linear, tmp_path / "x")), tmp_path)
    hint = hint_of(mlxport("convert", f"{tmp_path / 'factory.py'}:make", tmp_path / "x"))
    (words,) = commands_in(hint, tmp_path / "second")
    assert mlxport(*words).code == 0
    assert f"mlxport port {tmp_path / 'factory.py'}:FACTORY" in hint_of(
        mlxport("convert", tmp_path / "factory.py", tmp_path / "x")
    )


def _strings() -> Iterator[tuple[str, str]]:
    """Every string of the program that is not a docstring, with {} for what is filled in."""
    for path in sorted(Path(package.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documents = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                yield path.name, "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
                yield path.name, node.value


def test_every_command_that_is_named_exists_with_its_options() -> None:
    group = typer.main.get_command(app)
    commands = getattr(group, "commands", {})
    named = [
        (file, match)
        for file, text in _strings()
        for match in re.finditer(r"(?<![\w/.`-])mlxport (?P<name>[a-z]+)(?P<rest>[^;,`\n]*)", text)
        if match["name"] in commands or match["rest"].lstrip().startswith(("SRC", "DST", "{", "--"))
    ]
    assert len(named) > 20
    for file, match in named:
        assert match["name"] in commands, (file, match[0])
        options = {option for parameter in commands[match["name"]].params for option in parameter.opts}
        for option in re.findall(r"(?<=\s)--[a-z][a-z-]+", match["rest"]):
            assert option in options, (file, match[0], option)

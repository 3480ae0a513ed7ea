"""One field an option: the command line, the Python signature and the documentation say the same of each."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer

import mlxport
from mlxport.cli.app import app, main
from mlxport.cli.derived_flags import SeveralValues, flags_for, with_bare_flags
from mlxport.convert.options import ConvertOptions, SharedOptions
from mlxport.options.keywords import with_keywords
from mlxport.options.option_field import declared, option
from mlxport.port.port_options import PortOptions

COMMANDS = typer.main.get_command(app).commands
REFERENCE = Path(__file__).parents[2] / "docs" / "reference.md"
# What a command has besides the options: where from and where to, and what concerns the terminal only.
OF_THE_COMMAND = {
    "convert": {"source", "destination", "hf_path", "mlx_path", "as_json", "verbose"},
    "port": {"factory", "destination", "explain", "as_json", "verbose"},
}
KINDS = [("convert", ConvertOptions, mlxport.convert), ("port", PortOptions, mlxport.port_folder)]


def documented(command: str) -> dict[str, str]:
    """The options in the reference's table of a command: how it is spelled, and what stands beside it."""
    section = re.split(r"^### ", REFERENCE.read_text("utf-8"), flags=re.MULTILINE)
    (lines,) = (part.splitlines() for part in section if part.startswith(f"{command}\n"))
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("| `")]
    return {row[0].strip().replace("`", ""): row[-1].strip() for row in rows}


def parsed(*arguments: str) -> dict[str, object]:
    return COMMANDS[arguments[0]].make_context(arguments[0], [*arguments[1:]]).params


@pytest.mark.parametrize(("command", "kind", "function"), KINDS)
def test_command_line_signature_and_documentation_are_those_of_the_fields(command, kind, function):
    known = {item.name: item for item in declared(kind)}
    flags = {flag.name: flag for flag in COMMANDS[command].params}
    assert flags.keys() - OF_THE_COMMAND[command] == {name for name in known if not known[name].in_python_only}
    keywords = inspect.signature(function).parameters
    assert [*keywords][2:] == [*known]
    in_docs = documented(command)
    for name, item in known.items():
        keyword = keywords[name]
        assert (keyword.kind, keyword.default) == (inspect.Parameter.KEYWORD_ONLY, item.default)
        assert keyword.annotation == function.__annotations__[name] == item.annotation
        assert f"{name}: {item.doc.split()[0]}" in function.__doc__
        if not item.in_python_only:
            flag = flags[name]
            assert "/".join([*flag.opts, *flag.secondary_opts]) == "/".join(item.flags)
            assert flag.default == (item.default if item.unset is None else item.unset)
            assert flag.help == item.help and item.help
            assert in_docs[", ".join([*flag.opts, *flag.secondary_opts])] == item.help


def test_convert_and_port_share_their_fields():
    shared = {item.name for item in declared(SharedOptions)}
    own = {item.name for item in declared(PortOptions)} - shared
    assert own == {"dynamic_shapes", "on_port"} and shared < {item.name for item in declared(ConvertOptions)}
    for name, item in PortOptions.__dataclass_fields__.items():
        if name in shared:
            assert item.default == ConvertOptions.__dataclass_fields__[name].default


@dataclass(frozen=True, kw_only=True)
class Salted(ConvertOptions):
    """The options with one more, as a contributor would add it."""

    grains: int | None = option(None, "Grains of salt.", doc="Grains of salt, or None for none.", flags=("--grains",))


def test_an_option_is_one_edit():
    """A field more: keyword, description, flag and parsing are there."""

    @with_keywords(Salted)
    def convert(source: str, destination: str, options: Salted) -> int | None:
        """Salt it.

        Args:
            source: What.
            destination: Where.
            options: How.
        """
        return options.grains

    assert convert("a", "b", grains=3) == convert(source="a", destination="b", grains=3) == 3
    assert "grains: Grains of salt, or None for none." in convert.__doc__
    assert "options:" not in convert.__doc__ and "destination: Where." in convert.__doc__
    command = typer.Typer()
    seen: dict[str, object] = {}

    @command.command()
    @flags_for(Salted)
    def run(source: str, *, loud: bool = False, **options: object) -> None:
        seen.update(options, source=source, loud=loud)

    typer.main.get_command(command)(["x", "--grains", "7", "--dtype", "float16", "--loud"], standalone_mode=False)
    assert (seen["source"], seen["grains"], seen["dtype"], seen["loud"]) == ("x", 7, "float16", True)
    assert seen.keys() == {item.name for item in declared(Salted)} | {"source", "loud"}


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["--model", "s"], {"hf_path": "s"}),
        (["--hf-path", "s", "--mlx-path", "d"], {"hf_path": "s", "mlx_path": "d"}),
        (["--bits", "3", "--group-size", "32"], {"q_bits": 3, "q_group_size": 32}),
        (["--quant-predicate", "mixed_3_6"], {"recipe": "mixed_3_6"}),
        (["-q", "mxfp4", "--q-mode", "mxfp4"], {"quantize": "mxfp4", "q_mode": "mxfp4"}),
        (["--no-dynamic"], {"dynamic": False}),
        (["--target-bpw", "4.2"], {"target_bpw": 4.2}),
        ([], {"quiet": False, "max_shard_size": "5GB", "dynamic": True}),
    ],
)
def test_spellings(given, read):
    assert read.items() <= parsed("convert", *given).items()


@pytest.mark.parametrize(
    ("given", "alone"),
    [
        (["a", "b", "-q"], ["a", "b", "-q", "alone"]),
        (["-q", "org/model", "b"], ["-q", "alone", "org/model", "b"]),
        (["-q", "4", "b"], ["-q", "4", "b"]),
        (["-q", "mixed_4_6"], ["-q", "mixed_4_6"]),
        (["-q", "nonsense"], ["-q", "nonsense"]),
        (["--quantize", "--fit", "here"], ["--quantize", "alone", "--fit", "alone", "here"]),
        (["--fit", "M2 8GB"], ["--fit", "M2 8GB"]),
        (["--fit", ""], ["--fit", ""]),
        (["--fit"], ["--fit", "alone"]),
        (["-q", "here", "--fit", "-v"], ["-q", "alone", "here", "--fit", "alone", "-v"]),
        (["--context", "here"], ["--context", "here"]),
    ],
)
def test_flags_that_stand_alone(given, alone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert with_bare_flags(given, ConvertOptions) == alone


INPUTS = Annotated[list[str] | None, typer.Argument()]


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Options of which some are lists."""

    image: list[str] | None = option(None, "Pictures.", flags=("-i", "--image"))
    text: list[str] | None = option(None, "Texts.")
    prompt: str | None = option(None, "What is asked.")


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("DST --image a b --text c d e", {"image": ["a", "b"], "text": ["c", "d", "e"]}),
        ("DST -i a --image b -i c d", {"image": ["a", "b", "c", "d"]}),
        ("DST x --image a - --prompt p y", {"image": ["a", "-"], "prompt": "p", "inputs": ["x", "y"]}),
        ("DST --image a b --loud c", {"image": ["a", "b"], "loud": True, "inputs": ["c"]}),
        ("DST --image=a b", {"image": ["a"], "inputs": ["b"]}),
        ("DST --image a b -- c", {"image": ["a", "b"], "inputs": ["c"]}),
        ("DST --text -1 a", {"text": ["-1", "a"]}),
        ("--image a --prompt p DST b", {"image": ["a"], "prompt": "p", "inputs": ["b"]}),
        ("--loud --image a DST --image b c", {"image": ["a", "b", "c"]}),
        ("DST", {"image": None, "text": None}),
    ],
)
def test_flags_of_lists_take_all_values_that_follow(given, read):
    command = typer.Typer()
    seen: dict[str, object] = {}

    @command.command(cls=SeveralValues)
    @flags_for(Listed)
    def run(path: str, inputs: INPUTS = None, *, loud: bool = False, **options: object) -> None:
        seen.update(options, path=path, inputs=inputs, loud=loud)

    typer.main.get_command(command)(given.split(), standalone_mode=False)
    assert seen["path"] == "DST"
    assert {name: seen[name] for name in read} == read


def test_a_flag_of_a_list_wants_a_value(capsys):
    command = typer.Typer()

    @command.command(cls=SeveralValues)
    @flags_for(Listed)
    def run(path: str, **options: object) -> None: ...

    with pytest.raises(SystemExit):
        command(["DST", "--image"])
    assert "--image" in capsys.readouterr().err


def test_what_stands_in_brackets_is_shown(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "[as its generation_config.json says]" in shown

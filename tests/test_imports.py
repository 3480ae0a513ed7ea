"""The layering: data flows one way, so nothing imports a later layer, not even inside a function."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src" / "mlxport"
# Each module or package may import those of the lines above and of its own line.
LAYERS = [
    ["errors", "types", "_version"],
    ["progress"],
    ["graph"],
    ["quant"],
    ["source"],
    ["transform"],
    ["target"],
    ["plan"],
    ["write_blocks", "write"],
    ["workspace", "record", "tokenizer_files", "card"],
    ["parity"],
    ["run"],
    ["inspection_weights", "inspection"],
    ["calibrate"],
    ["distill"],
    ["fit"],
    ["quality"],
    ["allocation"],
    ["startup", "options", "job", "calibrate_job", "reporting"],
    ["porting", "porting_source", "porting_job", "conversion", "porting_folder"],
    ["torch_backend"],
    ["show", "show_fit", "show_allocation"],
    ["cli_options", "cli_output", "cli_run", "cli"],
    ["__main__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(path for path in SOURCES.rglob("*.py") if path != SOURCES / "__init__.py")
USE_TORCH = (
    "parity/",
    "graph/",
    "porting",
    "torch_backend.py",
    "source/torch_file.py",
    "target/generated.py",
    "target/hf_model.py",
    "target/hf_weights.py",
)
WITHOUT_TORCH = [path for path in MODULES if not path.relative_to(SOURCES).as_posix().startswith(USE_TORCH)]


def layer(path: Path) -> str:
    return path.relative_to(SOURCES).parts[0].removesuffix(".py")


def runtime(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those of ``if TYPE_CHECKING`` blocks."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for other in node.orelse:
                yield other
                yield from runtime(other)
            continue
        yield node
        yield from runtime(node)


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported; ``from a import b`` is ``a.b``."""
    for node in runtime(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def violations(source: str, own: str) -> list[str]:
    found = []
    for line, name in imported(source):
        parts = name.split(".")
        if parts[0] != "mlxport":
            continue
        target = parts[1] if len(parts) > 1 else ""
        if target not in LEVEL:
            found.append(f"line {line}: {name} belongs to no layer")
        elif LEVEL[target] > LEVEL[own]:
            found.append(f"line {line}: {own} must not import {target}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCES)))
def test_nothing_imports_a_later_layer(path):
    own = layer(path)
    assert own in LEVEL, f"add {own} to LAYERS"
    assert violations(path.read_text(encoding="utf-8"), own) == []


@pytest.mark.parametrize("path", WITHOUT_TORCH, ids=lambda path: str(path.relative_to(SOURCES)))
def test_torch_is_imported_only_where_it_is_optional(path):
    used = [f"line {line}: {name}" for line, name in imported(path.read_text("utf-8")) if name.split(".")[0] == "torch"]
    assert used == []


def test_every_layer_exists():
    assert set(LEVEL) == {layer(path) for path in MODULES}
    assert sum(len(names) for names in LAYERS) == len(LEVEL)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("from mlxport.cli import main", 1),
        ("import mlxport.cli", 1),
        ("from mlxport import cli", 1),
        ("def f():\n    from mlxport.show import x", 1),
        ("if TYPE_CHECKING:\n    from mlxport.cli import main", 0),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    from mlxport.cli import main", 1),
        ("from mlxport.types import Plan", 0),
        ("from mlxport.nowhere import x", 1),
    ],
)
def test_the_check_itself(source, count):
    assert len(violations(source, "plan")) == count

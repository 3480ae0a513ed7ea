"""The layering: each package says what it may import, and no file is in a circle, not even inside a function."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src" / "mlxport"
MODULES = sorted(path for path in SOURCES.rglob("*.py") if path != SOURCES / "__init__.py")
ROOT = {"__init__", "__main__", "_version", "config_values", "errors", "model_config", "printable", "progress", "types"}
MOST_IN_ROOT = 10
USE_TORCH = ("parity/", "graph/", "port/", "source/torch_file.py", "layouts/generated/")
WITHOUT_TORCH = [path for path in MODULES if not path.relative_to(SOURCES).as_posix().startswith(USE_TORCH)]


def full_name(path: Path) -> str:
    parts = path.relative_to(SOURCES).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {full_name(path): path for path in MODULES}
PACKAGES = {name for name, path in NAMES.items() if path.name == "__init__.py"}


def package(name: str) -> str:
    """The innermost package that a module is in; a file of the root is its own."""
    return name if name in PACKAGES or "." not in name else name.rpartition(".")[0]


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported, at run time or for types; ``from a import b`` is ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def own_modules(source: str) -> Iterator[tuple[int, str]]:
    """Line and name, below ``mlxport``, of every module of ours that is imported."""
    for line, name in imported(source):
        first, _, rest = name.partition(".")
        if first != "mlxport":
            continue
        if rest not in NAMES:
            rest = rest.rpartition(".")[0]
        yield line, rest


def allowed(docstring: str) -> frozenset[str]:
    """What the line ``Imports: …`` of a package's docstring names."""
    found = re.search(r"Imports:\s*([^.]*(?:\.[a-z_][^.]*)*)\.\s*$", docstring)
    assert found is not None, "the docstring of a package ends with a line Imports: …, or Imports: nothing"
    names = re.split(r",\s*", found.group(1).strip())
    return frozenset() if names == ["nothing"] else frozenset(names)


ALLOWED = {name: allowed(ast.get_docstring(ast.parse(NAMES[name].read_text("utf-8"))) or "") for name in PACKAGES}


def may_import(own: str, other: str, rules: Mapping[str, frozenset[str]]) -> bool:
    """Whether ``own`` may import ``other``: itself, what it holds, or what it or a package around it names."""
    if other == own or other.startswith(f"{own}."):
        return True
    around = [own]
    while "." in around[-1]:
        around.append(around[-1].rpartition(".")[0])
    named = set().union(*(rules[name] for name in around))
    return any(other == name or other.startswith(f"{name}.") for name in named)


def violations(source: str, own: str, rules: Mapping[str, frozenset[str]] = ALLOWED) -> list[str]:
    found = []
    for line, name in own_modules(source):
        if name and not may_import(own, package(name), rules):
            found.append(f"line {line}: {own} does not say that it imports {package(name)}")
    return found


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(edges.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return found


@pytest.mark.parametrize("name", [n for n in NAMES if package(n) in PACKAGES])
def test_a_package_imports_what_it_says(name):
    assert violations(NAMES[name].read_text("utf-8"), package(name)) == []


def test_no_file_is_in_a_circle():
    edges = {n: {other for _, other in own_modules(p.read_text("utf-8")) if other != n} for n, p in NAMES.items()}
    assert circles(edges) == []


def test_no_package_is_in_a_circle():
    """Of the packages side by side in the root; a package and those inside it are one room."""
    edges = {name: {other for other in rule if other in PACKAGES} for name, rule in ALLOWED.items() if "." not in name}
    assert circles(edges) == []
    graph = {
        name: {o for o in rule if o.startswith("graph.")} for name, rule in ALLOWED.items() if name.count(".") == 1
    }
    assert circles(graph) == []


def test_what_a_package_says_is_true():
    """No name in an ``Imports:`` line that is not imported: the line is read as documentation."""
    for own, rule in ALLOWED.items():
        files = [path for name, path in NAMES.items() if package(name) == own or package(name).startswith(f"{own}.")]
        used = {other for path in files for _, other in own_modules(path.read_text("utf-8"))}
        idle = [name for name in rule if not any(u == name or u.startswith(f"{name}.") for u in used)]
        assert idle == [], f"{own} imports none of these"


def test_the_root_holds_few_files():
    names = {path.stem for path in SOURCES.glob("*.py")}
    assert names == ROOT
    assert len([path for path in SOURCES.iterdir() if path.is_file()]) <= MOST_IN_ROOT


def test_no_two_files_or_classes_of_one_name_mean_different_things():
    """A family of ops has a file of lowerings and one of helpers; every layout says what it is and how it opens."""
    stems = Counter(path.stem for name, path in NAMES.items() if not name.startswith("graph.lower.helpers."))
    assert {stem for stem, count in stems.items() if count > 1} <= {"__init__", "layout", "opening"}
    trees = (ast.parse(path.read_text("utf-8")) for path in MODULES)
    classes = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert [name for name, count in classes.items() if count > 1] == []


@pytest.mark.parametrize("path", WITHOUT_TORCH, ids=lambda path: str(path.relative_to(SOURCES)))
def test_torch_is_imported_only_where_it_is_optional(path):
    used = [f"line {line}: {name}" for line, name in imported(path.read_text("utf-8")) if name.split(".")[0] == "torch"]
    assert used == []


RULES = {"source": frozenset({"errors"}), "graph.write": frozenset({"graph.lower"}), "graph": frozenset({"errors"})}


@pytest.mark.parametrize(
    ("source", "own", "count"),
    [
        ("from mlxport.cli.app import main", "source", 1),
        ("import mlxport.cli.app", "source", 1),
        ("from mlxport import cli", "source", 1),
        ("def f():\n    from mlxport.cli.app import x", "source", 1),
        ("if TYPE_CHECKING:\n    from mlxport.cli.app import main", "source", 1),
        ("from mlxport.errors import SourceError", "source", 0),
        ("from mlxport.source.hub import x", "source", 0),
        ("from mlxport.graph.lower.ops import x", "graph.write", 0),
        ("from mlxport.errors import x", "graph.write", 0),
        ("from mlxport.graph.capture.export import x", "graph.write", 1),
        ("from mlxport.nowhere import x", "source", 1),
    ],
)
def test_the_check_itself(source, own, count):
    assert len(violations(source, own, RULES)) == count


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}}) == []

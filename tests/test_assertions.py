"""Every test can fail: it asserts, expects an exception, or calls a helper that does."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
EXPECTS = ("pytest.raises", "pytest.warns", "pytest.fail")


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def called(node: ast.AST) -> Iterator[str]:
    """Names of what is called, as they are written."""
    yield from (ast.unparse(each.func) for each in ast.walk(node) if isinstance(each, ast.Call))


def asserts(node: ast.AST) -> bool:
    """Whether it does so itself; numpy's and unittest's functions begin with ``assert``."""
    names = tuple(called(node))
    if any(name in EXPECTS or name.rpartition(".")[2].startswith("assert_") for name in names):
        return True
    return any(isinstance(each, ast.Assert) for each in ast.walk(node))


def by_name(paths: Iterable[Path]) -> dict[str, list[ast.FunctionDef]]:
    found: dict[str, list[ast.FunctionDef]] = {}
    for path in paths:
        for function in functions(ast.parse(path.read_text("utf-8"))):
            found.setdefault(function.name, []).append(function)
    return found


@cache
def everywhere() -> dict[str, list[ast.FunctionDef]]:
    """The functions of all tests."""
    return by_name(TESTS.rglob("*.py"))


def can_fail(node: ast.AST, known: dict[str, list[ast.FunctionDef]], seen: frozenset[str] = frozenset()) -> bool:
    """Whether it asserts, or something that it calls does, in every function of that name."""
    if asserts(node):
        return True
    names = {name.rpartition(".")[2] for name in called(node)} - seen
    return any(all(can_fail(f, known, seen | {n}) for f in known[n]) for n in names if n in known)


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_every_test_can_fail(path: Path) -> None:
    own = by_name([path])
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    froms = {(node.module or "").rpartition(".")[2] for node in nodes if isinstance(node, ast.ImportFrom)}
    imported = by_name(each for each in TESTS.rglob("*.py") if each.stem in froms)
    tests = [test for name, found in own.items() if name.startswith("test_") for test in found]
    assert tests, "a file of tests without a test"
    assert [test.name for test in tests if not can_fail(test, {**everywhere(), **imported, **own})] == []


@pytest.mark.parametrize(
    ("source", "fails"),
    [
        ("def test_a(): pass", False),
        ("def test_a(): open('x')", False),
        ("def test_a(): assert open('x')", True),
        ("def test_a():\n    with pytest.raises(ValueError): int('x')", True),
        ("def test_a(): np.testing.assert_allclose(1, 1)", True),
        ("def test_a(): check(1)\ndef check(x): assert x", True),
        ("def test_a(): check(1)\ndef check(x): print(x)", False),
        ("def test_a(): self.check(1)\ndef check(x): deeper(x)\ndef deeper(x): assert x", True),
        ("def test_a(): check(1)\ndef check(x): check(x)", False),
    ],
)
def test_what_counts(source: str, fails: bool) -> None:
    known = {function.name: [function] for function in functions(ast.parse(source))}
    assert can_fail(known["test_a"][0], known) == fails


def test_no_two_files_of_tests_have_one_name() -> None:
    """pytest imports them by their stem, and stops at the second."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []

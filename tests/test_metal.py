"""What MLX has on the CPU only is asked for there, or not at all, so that all of it also runs on Metal."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src" / "mlxport"
EVERYWHERE = ("norm", "cross")  # of mx.linalg: made of other ops, which a GPU has


def elsewhere(node: ast.AST, on_cpu: bool = False) -> Iterator[str]:
    """Calls of ``mx.linalg`` that would run on the default device."""
    if isinstance(node, ast.With):
        on_cpu = on_cpu or any(ast.unparse(item.context_expr) == "mx.stream(mx.cpu)" for item in node.items)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not on_cpu:
        owner, streams = ast.unparse(node.func.value), [k for k in node.keywords if k.arg == "stream"]
        if owner in ("mx.linalg", "linalg") and node.func.attr not in EVERYWHERE and not streams:
            yield ast.unparse(node)
    for child in ast.iter_child_nodes(node):
        yield from elsewhere(child, on_cpu)


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCES)))
def test_nothing_needs_the_cpu_unasked(path: Path) -> None:
    source = path.read_text("utf-8")
    assert "mx.float64" not in source and "mx.complex128" not in source
    assert list(elsewhere(ast.parse(source))) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("mx.linalg.inv(a)", ["mx.linalg.inv(a)"]),
        ("linalg.qr(a, stream=mx.cpu)", []),
        ("with mx.stream(mx.cpu):\n    mx.linalg.inv(a)", []),
        ("mx.linalg.norm(a)", []),
    ],
)
def test_what_is_found(source: str, found: list[str]) -> None:
    assert list(elsewhere(ast.parse(source))) == found

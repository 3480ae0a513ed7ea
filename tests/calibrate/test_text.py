"""The text to calibrate on: read, refused, cut into tokens."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from checkpoints import write_llama
from mlxport.calibrate.calibration_text import MOST_TOKENS, Calibration, read_calibration, tokens_of
from mlxport.errors import TokenizerError, UsageError
from mlxport.source import open_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    return open_checkpoint(str(write_llama(tmp_path / "source")))


def test_the_shipped_text_has_many_scripts_and_no_repetition():
    text = read_calibration("default").text
    assert 40_000 < len(text.encode()) < 60_000
    for sample in ("Straßenbahn", "l'aube", "¿Quién", "não", "часовщик", "修理", "灯台", "할머니", "القرية", "गाँव"):
        assert sample in text
    for sample in ("def __init__(self", "SELECT", "#include", "<html", "\\begin{proof}", '"version"', "User:"):
        assert sample in text
    lines = [line for line in text.splitlines() if len(line) > 40]
    assert len(set(lines)) == len(lines)


def test_none_means_none():
    assert read_calibration(None) is None and read_calibration("none") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\t ", "is empty"),
        (b"\xff\xfe\x00\x01binary", "is not text: byte 0"),
        (b"text \x00 with zeros", "zero bytes"),
    ],
)
def test_what_is_no_text_is_refused(content, message, tmp_path):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_calibration(tmp_path / "text.txt")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_calibration(tmp_path / "absent.txt")
    with pytest.raises(UsageError, match="directory"):
        read_calibration(tmp_path)


def test_the_hash_is_that_of_the_file(tmp_path):
    (tmp_path / "text.txt").write_text("Ein Satz über Äpfel.", encoding="utf-8")
    found = read_calibration(tmp_path / "text.txt").recorded()["sha256"]
    assert found == hashlib.sha256((tmp_path / "text.txt").read_bytes()).hexdigest()


def test_sequences_of_the_models_own_tokens(checkpoint):
    tokens = tokens_of(Calibration("x", "abc " * 300), checkpoint)
    assert tokens.shape == (4, 256)  # max_position_embeddings is 256; one token a byte, and one before them
    assert tokens.max().item() < 320


def test_a_long_text_is_read_from_beginning_to_end(checkpoint):
    text = "a" * 100_000 + "b" * 100_000
    tokens = np.array(tokens_of(Calibration("x", text), checkpoint))
    assert tokens.size == MOST_TOKENS
    _, counts = np.unique(tokens, return_counts=True)
    assert min(sorted(counts)[-2:]) > 0.45 * MOST_TOKENS


def test_a_text_of_any_length_is_not_tokenized_whole(checkpoint):
    text = "a" * 3_000_000 + "b" * 3_000_000
    tokens = np.array(tokens_of(Calibration("x", text), checkpoint))
    _, counts = np.unique(tokens, return_counts=True)
    assert min(sorted(counts)[-2:]) > 0.45 * MOST_TOKENS


def test_too_short(checkpoint):
    with pytest.raises(UsageError, match="too short: 8 tokens"):
        tokens_of(Calibration("x", "abc abcd"), checkpoint)


def test_tokens_that_the_model_does_not_have_are_left_out(checkpoint, tmp_path):
    path = checkpoint.root / "config.json"
    config = json.loads(path.read_text()) | {"vocab_size": 100}
    other = open_checkpoint(str(checkpoint.root))
    assert tokens_of(Calibration("x", "aé" * 2000), type(other)(**{**vars(other), "config": config})).max().item() < 100


def test_without_a_tokenizer(checkpoint):
    for path in checkpoint.root.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(TokenizerError, match="no tokenizer that loads"):
        tokens_of(Calibration("x", "abc " * 300), checkpoint)

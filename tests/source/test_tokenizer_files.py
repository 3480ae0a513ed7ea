"""What a tokenizer's files alone tell: damaged ones are refused, legal ones of every kind are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoints import VOCABULARY, write_tokenizer
from mlxport.errors import TokenizerError
from mlxport.source.tokenizer_files import check_tokenizer_files
from mlxport.types import Checkpoint

Change = Callable[[Path], Any]


def check(folder: Path, rows: int | None = VOCABULARY) -> tuple[str, ...]:
    return check_tokenizer_files(Checkpoint(folder, {}, {}, (), tuple(sorted(folder.iterdir()))), rows)


def pieces(number: int, length: int = 5) -> bytes:
    """A sentencepiece model: pieces of a text and a score each, then the parts of trainer and normalizer."""
    body = b"\x0a" + bytes([length]) + b"x" * length + b"\x15\x00\x00\x00\x00"
    size = len(body)
    varint = bytes([size]) if size < 128 else bytes([size & 0x7F | 0x80, size >> 7])
    return (b"\x0a" + varint + body) * number + b"\x12\x02\x18\x01" + b"\x1a\x03\x0a\x01x"


def lines(number: int, end: str = "\n") -> str:
    return "\n".join(f"word{i}" for i in range(number)) + end


def alone(name: str, content: str | bytes) -> Change:
    """The file without the fast tokenizer that would be read in its place."""

    def change(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        beside(name, content)(folder)

    return change


def beside(name: str, content: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def model(**changes: Any) -> Change:
    """Change the model of tokenizer.json; None takes a key away."""

    def change(folder: Path) -> None:
        data = json.loads((folder / "tokenizer.json").read_text())
        data["model"] = {key: value for key, value in (data["model"] | changes).items() if value is not None}
        (folder / "tokenizer.json").write_text(json.dumps(data))

    return change


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


DAMAGED: list[tuple[str, Change, tuple[str, ...]]] = [
    ("config not JSON", beside("tokenizer_config.json", "{"), ("tokenizer_config.json", "is not JSON")),
    ("config a list", beside("tokenizer_config.json", "[]"), ("tokenizer_config.json", "not a JSON object but a list")),
    ("config empty", beside("tokenizer_config.json", ""), ("tokenizer_config.json", "is not JSON")),
    ("type unknown", model(type="Magic"), ("tokenizer.json", "'Magic'", "WordLevel")),
    ("type in small letters", model(type="bpe"), ("tokenizer.json", "'bpe'")),
    ("type a list", model(type=[1]), ("tokenizer.json", "'[1]'")),
    ("more lines than rows", alone("vocab.txt", lines(321)), ("vocab.txt", "another vocabulary", "320")),
    ("more lines, the last one open", alone("vocab.txt", lines(321, "")), ("vocab.txt", "another vocabulary")),
    ("more pieces than rows", alone("tokenizer.model", pieces(321)), ("tokenizer.model", "another vocabulary", "320")),
    ("more pieces in spiece.model", alone("spiece.model", pieces(999)), ("spiece.model", "another vocabulary")),
    *[
        (f"{name}: {what}", change(name, content), (name, "not a sentencepiece model"))
        for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
        for change in (alone, beside)
        for what, content in (
            ("empty", b""),
            ("junk", b"junk"),
            ("lines", b"\n\n\n\n"),
            ("JSON", b'{"a": 1}'),
            ("cut off in a piece", pieces(50)[:-10]),
            ("cut off in a length", pieces(2, 150)[: len(pieces(1, 150)) - 7]),
            ("endless number", b"\x0a" + b"\xff" * 30),
            ("another protobuf", b"\x0a\x01x\x08\x01"),
        )
    ],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("change", "named"), [case[1:] for case in DAMAGED], ids=[case[0] for case in DAMAGED])
def test_damaged(folder: Path, change: Change, named: tuple[str, ...]) -> None:
    change(folder)
    with pytest.raises(TokenizerError) as caught:
        check(folder)
    assert all(name in caught.value.message for name in (str(folder), *named)), caught.value.message
    assert caught.value.hint


LEGAL: list[tuple[str, Change]] = [
    ("as it is", lambda folder: None),
    ("no config", lambda folder: (folder / "tokenizer_config.json").unlink()),
    ("an old one without a type", model(type=None)),
    ("WordLevel", model(type="WordLevel")),
    ("Unigram", model(type="Unigram", vocab=[[f"x{i}", 0.0] for i in range(VOCABULARY)])),
    ("vocab.txt", alone("vocab.txt", lines(VOCABULARY))),
    ("vocab.txt, the last line open", alone("vocab.txt", lines(VOCABULARY, ""))),
    ("vocab.txt, empty lines at its end", alone("vocab.txt", lines(VOCABULARY, "\r\n\n\n"))),
    ("vocab.txt not in UTF-8", alone("vocab.txt", b"\xff\n" * VOCABULARY)),
    ("tokenizer.model", alone("tokenizer.model", pieces(VOCABULARY))),
    ("tokenizer.model of long pieces", alone("tokenizer.model", pieces(VOCABULARY, 200))),
    ("tokenizer.model of Llama 3", alone("tokenizer.model", b"IQ== 0\nIg== 1\n")),
    ("spiece.model", alone("spiece.model", pieces(VOCABULARY))),
    ("bartpho keeps a part", alone("sentencepiece.bpe.model", pieces(VOCABULARY * 5))),
    ("tiktoken", alone("qwen.tiktoken", "IQ== 0\n")),
    ("another kind of .model beside", beside("word2vec.model", "junk")),
    ("vocab.json and merges", both(alone("vocab.json", '{"a": 319}'), beside("merges.txt", "#version: 0.2\n"))),
]


@pytest.mark.parametrize("change", [case[1] for case in LEGAL], ids=[case[0] for case in LEGAL])
def test_legal(folder: Path, change: Change) -> None:
    change(folder)
    assert check(folder) == ()


@pytest.mark.parametrize(
    "change",
    [
        beside("vocab.txt", lines(400)),
        beside("tokenizer.model", pieces(400)),
        both(alone("tokenizer.model", pieces(400)), beside("tokenization_x.py", "")),
        both(alone("vocab.txt", lines(400)), beside("x.tiktoken", "IQ== 0\n")),
        both(alone("tokenizer.model", pieces(400)), beside("vocab.json", '{"a": 319}')),
    ],
)
def test_a_leftover_that_nothing_reads_is_told_not_refused(folder: Path, change: Change) -> None:
    change(folder)
    (remark,) = check(folder)
    assert "its ids go up to 399, the embedding has 320 rows" in remark


def test_without_rows_only_what_is_damaged_is_refused(folder: Path) -> None:
    alone("vocab.txt", lines(99_999))(folder)
    assert check(folder, None) == ()
    (folder / "tokenizer.model").write_bytes(b"junk")
    with pytest.raises(TokenizerError):
        check(folder, None)


def test_real_sentencepiece_models(folder: Path) -> None:
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    text = [f"{a}{b} {b}{a}{a}" for a in "abcdefghij" for b in "klmnopqrst"]
    (folder / "tokenizer.json").unlink()
    for kind in ("unigram", "bpe"):
        with open(folder / "tokenizer.model", "wb") as file:
            trainer.train(
                sentence_iterator=iter(text), model_writer=file, vocab_size=40, model_type=kind, minloglevel=2
            )
        assert check(folder, 40) == ()
        with pytest.raises(TokenizerError, match="ids go up to 39, the embedding has 39 rows"):
            check(folder, 39)

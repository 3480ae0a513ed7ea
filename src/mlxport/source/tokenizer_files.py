"""What can be known of a tokenizer from its files alone: is there one, and does it fit the embedding."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mlxport.errors import ConfigError, TokenizerError
from mlxport.model_config import ModelConfig
from mlxport.source.jsonfile import MAX_JSON_BYTES, read_object
from mlxport.source.safe_files import opened, read_exactly
from mlxport.source.tiktoken_tokenizer import made_tokenizer
from mlxport.source.tokenizer_loading import check_settings, checked_ends
from mlxport.types import Checkpoint

_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
# Bytes or characters are their ids: there is nothing to list.
_WITHOUT_VOCABULARY = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|tok_embeddings|wte|embed_in|word_embeddings|embeddings?)\.weight$")
_MARKERS = 4
# The models that the tokenizers library knows.
_TYPES = ("BPE", "Unigram", "WordPiece", "WordLevel")
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
# Llama 3's tokenizer.model, which transformers reads too, is a list of ranks: "IQ== 0".
_RANKS = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
_HINT = "copy the tokenizer files of the original model beside its config.json"


def embedding_rows(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Rows of the token embedding: the larger of what weights and config say; None if neither tells."""
    sizes = [shape[0] for name, shape in shapes.items() if _EMBEDDING.search(name) and len(shape) == 2]
    if (vocabulary := ModelConfig(config).vocabulary) is not None:
        sizes.append(vocabulary)
    return max(sizes, default=None)


def check_tokenizer_files(checkpoint: Checkpoint, rows: int | None) -> tuple[str, ...]:
    """Check that a tokenizer is there, that its files can be read, and that every id of it has a row in the embedding.

    Args:
        checkpoint: The opened source.
        rows: Rows of the embedding, None if unknown.

    Returns:
        Remarks that do not stop a conversion.

    Raises:
        TokenizerError: No tokenizer, a malformed file of one, or one with ids beyond the embedding.
    """
    names = {path.name: path for path in checkpoint.side_files}
    # Tokenizers whose ids we cannot count.
    others = any(re.fullmatch(r"tokenization.*\.py|.*\.tiktoken", name) for name in names)
    if not others and not any(name in _VOCABULARIES for name in names) and not _counts_bytes(checkpoint, names):
        message = f"{checkpoint.name} has no tokenizer (looked for {', '.join(_VOCABULARIES)}, *.tiktoken)"
        raise TokenizerError(message, hint=_HINT)
    if "tokenizer_config.json" in names:
        check_settings(names["tokenizer_config.json"].parent)
    if "generation_config.json" in names:
        path = names["generation_config.json"]
        checked_ends(read_object(path, ConfigError, unique=False).get("eos_token_id"), str(path))
    sizes, loose = _json_sizes(names, rows)
    slow = _slow_sizes(names)
    remarks: list[str] = []
    if sizes or others:  # then the ids come from there, and a slow tokenizer's file may be a leftover
        remarks = [_beyond(names[name], size, rows) for name, size in slow.items() if rows and size > rows]
    else:
        sizes = slow
    if (made := made_tokenizer(checkpoint.root)) is not None:
        remarks.append(made.note)
        sizes[made.ranks.name] = made.size
    for name, size in sizes.items():
        if rows is not None and size > rows:
            raise TokenizerError(_beyond(names[name], size, rows), hint=_HINT)
    remarks += [
        f"{token} (id {number}) has no row in the embedding: the text must not hold it"
        for token, number in loose.items()
    ]
    size = max(sizes.values(), default=0)
    if rows and size and size * 2 < rows:
        remarks.append(f"the tokenizer has {size} ids, the embedding {rows} rows: is it the right tokenizer?")
    return tuple(remarks)


def _counts_bytes(checkpoint: Checkpoint, names: Mapping[str, Path]) -> bool:
    """Whether the tokenizer is one that has no vocabulary, by the name of its class."""
    settings: Mapping[str, Any] = {}
    if "tokenizer_config.json" in names:
        settings = read_object(names["tokenizer_config.json"], TokenizerError, unique=False)
    given = settings.get("tokenizer_class", checkpoint.config.get("tokenizer_class"))
    return given in _WITHOUT_VOCABULARY


def _beyond(path: Path, size: int, rows: int | None) -> str:
    return f"{path} is for another vocabulary: its ids go up to {size - 1}, the embedding has {rows} rows"


def _json_sizes(names: Mapping[str, Path], rows: int | None) -> tuple[dict[str, int], dict[str, int]]:
    """Ids by file, for the vocabularies in JSON; and the markers that may do without a row."""
    sizes: dict[str, int] = {}
    loose: dict[str, int] = {}
    readers: tuple[tuple[str, Callable[[Path, dict[str, Any]], Iterable[int]]], ...] = (
        ("tokenizer.json", _fast_ids),
        ("vocab.json", _vocab_ids),
    )
    for name, read in readers:
        if name in names:
            data = read_object(names[name], TokenizerError, unique=False)
            ids = list(read(names[name], data))
            if rows is not None and name == "tokenizer.json":
                loose = _markers(data, rows)
                ids = [i for i in ids if i not in loose.values()] if len(loose) <= _MARKERS else ids
            sizes[name] = max(ids, default=-1) + 1
    return sizes, loose


def _slow_sizes(names: Mapping[str, Path]) -> dict[str, int]:
    """Ids by file, for the vocabularies of tokenizers without a tokenizer.json, where the file itself gives them."""
    sizes: dict[str, int] = {}
    for name in _SENTENCEPIECE:
        if name in names:
            pieces = _pieces(names[name], _read(names[name]))
            # Those who have a sentencepiece.bpe.model shift its ids, or keep but a part of them (bartpho).
            if pieces is not None and name != "sentencepiece.bpe.model":
                sizes[name] = pieces
    if "vocab.txt" in names:
        text = _read(names["vocab.txt"]).rstrip(b"\r\n")
        sizes["vocab.txt"] = text.count(b"\n") + 1 if text else 0
    return sizes


def _read(path: Path) -> bytes:
    with opened(path, TokenizerError) as (fd, size):
        if size > MAX_JSON_BYTES:
            message = f"{path} has {size} bytes; at most {MAX_JSON_BYTES} are expected of a vocabulary"
            raise TokenizerError(message, hint=_HINT)
        return read_exactly(fd, size, 0, path)


def _pieces(path: Path, data: bytes) -> int | None:
    """Pieces of a sentencepiece model, None for a list of ranks; the library is not needed for that.

    A ModelProto begins with its pieces, field 1, and has nothing but fields with a length:
    https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
    """
    if _RANKS.match(data):
        return None
    count = position = 0
    try:
        while position < len(data):
            tag, position = _varint(data, position)
            if tag & 7 != 2 or (position == 1 and tag != 0x0A):
                raise ValueError(f"a field with the tag {tag:#x} at byte {position}")
            length, position = _varint(data, position)
            position += length
            count += tag == 0x0A
        if position != len(data) or not count:
            raise ValueError(f"it ends at byte {len(data)}, expected at least {max(position, 1)}")
    except (ValueError, IndexError) as error:
        why = str(error) if isinstance(error, ValueError) else f"it ends within a field at byte {len(data)}"
        message = f"{path} is not a sentencepiece model, or it is damaged: {why}"
        raise TokenizerError(message, hint=_HINT) from error
    return count


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a number of more than ten bytes at byte {position}")


def _fast_ids(path: Path, data: dict[str, Any]) -> Iterable[int]:
    """Ids in a tokenizer.json: the model's vocabulary (a map, or a list for Unigram) and the added tokens."""
    model = data.get("model")
    vocabulary = model.get("vocab", {}) if isinstance(model, dict) else None
    kind = model.get("type", _TYPES[0]) if isinstance(model, dict) else _TYPES[0]  # old files leave it out
    if kind not in _TYPES:
        found = f"{path}: the model's type is {str(kind)[:80]!r}, expected one of {', '.join(_TYPES)}"
        raise TokenizerError(found, hint=_HINT)
    added = data.get("added_tokens") or []
    if isinstance(vocabulary, list):
        ids = [*range(len(vocabulary))]
    elif isinstance(vocabulary, dict):
        ids = list(vocabulary.values())
    else:
        raise TokenizerError(f"{path} has no model with a vocabulary", hint=_HINT)
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise TokenizerError(f"{path}: added_tokens must be a list of objects", hint=_HINT)
    return _checked(path, [*ids, *(token.get("id") for token in added)])


def _markers(data: Mapping[str, Any], rows: int) -> dict[str, int]:
    """Special tokens without a row: text-only releases of models that see carry the marker of an image (gemma 3)."""
    tokens = [token for token in data.get("added_tokens") or [] if token["id"] >= rows]
    return {str(token.get("content")): token["id"] for token in tokens if token.get("special") is True}


def _vocab_ids(path: Path, data: dict[str, Any]) -> Iterable[int]:
    return _checked(path, list(data.values()))


def _checked(path: Path, ids: list[Any]) -> list[int]:
    for number in ids:
        if not isinstance(number, int) or number < 0:
            raise TokenizerError(f"{path}: {number!r} is not a token id", hint=_HINT)
    return ids

"""What can be known of a tokenizer from its files alone: is there one, and does it fit the embedding."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlxport.errors import TokenizerError
from mlxport.types import Checkpoint

_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|tok_embeddings|wte|embed_in|word_embeddings|embeddings?)\.weight$")
_MARKERS = 4
_HINT = "copy the tokenizer files of the original model beside its config.json"


def embedding_rows(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Rows of the token embedding: the larger of what weights and config say; None if neither tells."""
    text = config.get("text_config")
    sizes = [config.get("vocab_size"), text.get("vocab_size") if isinstance(text, dict) else None]
    sizes += [shape[0] for name, shape in shapes.items() if _EMBEDDING.search(name) and len(shape) == 2]
    known = [size for size in sizes if isinstance(size, int)]
    return max(known) if known else None


def check_tokenizer_files(checkpoint: Checkpoint, rows: int | None) -> tuple[str, ...]:
    """Check that a tokenizer is there and that every id of it has a row in the embedding.

    Args:
        checkpoint: The opened source.
        rows: Rows of the embedding, None if unknown.

    Returns:
        Remarks that do not stop a conversion.

    Raises:
        TokenizerError: No tokenizer, a malformed one, or one with ids beyond the embedding.
    """
    names = {path.name: path for path in checkpoint.side_files}
    if not any(name in names for name in _VOCABULARIES) and not any(name.endswith(".tiktoken") for name in names):
        custom = [name for name in names if name.startswith("tokenization") and name.endswith(".py")]
        if not custom:
            message = f"{checkpoint.name} has no tokenizer (looked for {', '.join(_VOCABULARIES)}, *.tiktoken)"
            raise TokenizerError(message, hint=_HINT)
    sizes: dict[str, int] = {}
    loose: dict[str, int] = {}
    for name, read in (("tokenizer.json", _fast_ids), ("vocab.json", _vocab_ids)):
        if name in names:
            data = _load(names[name])
            ids = list(read(names[name], data))
            if rows is not None and name == "tokenizer.json":
                loose = _markers(data, rows)
                ids = [i for i in ids if i not in loose.values()] if len(loose) <= _MARKERS else ids
            sizes[name] = max(ids, default=-1) + 1
    for name, size in sizes.items():
        if rows is not None and size > rows:
            raise TokenizerError(
                f"{names[name]} is for another vocabulary: its ids go up to {size - 1}, the embedding has {rows} rows",
                hint=_HINT,
            )
    remarks = [
        f"{token} (id {number}) has no row in the embedding: the text must not hold it"
        for token, number in loose.items()
    ]
    size = max(sizes.values(), default=0)
    if rows and size and size * 2 < rows:
        remarks.append(f"the tokenizer has {size} ids, the embedding {rows} rows: is it the right tokenizer?")
    return tuple(remarks)


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}", hint=_HINT) from error
    if not isinstance(data, dict):
        raise TokenizerError(f"{path} must hold a JSON object, got {type(data).__name__}", hint=_HINT)
    return data


def _fast_ids(path: Path, data: dict[str, Any]) -> Iterable[int]:
    """Ids in a tokenizer.json: the model's vocabulary (a map, or a list for Unigram) and the added tokens."""
    model = data.get("model")
    vocabulary = model.get("vocab", {}) if isinstance(model, dict) else None
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

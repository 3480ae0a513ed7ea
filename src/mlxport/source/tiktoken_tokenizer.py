"""Tokenizers that are a list of ranks (``*.tiktoken``) and code of a checkpoint: as ``tokenizer.json``, no code run.

tiktoken joins the pair of neighbours whose joint token has the lowest rank, the leftmost first, and takes a piece that
is a token whole (https://github.com/openai/tiktoken/blob/main/src/lib.rs). The same in ``tokenizer.json``: a token is
made of the two parts that this leaves of it before the last step, merges are in the order of the ranks, and
``ignore_merges`` takes pieces as they are.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxport.errors import SourceError, TokenizerError
from mlxport.source.jsonfile import MAX_JSON_BYTES, read_object
from mlxport.source.safe_files import opened, read_exactly

__all__ = ["MadeTokenizer", "made_tokenizer"]

_AGAIN = "get the file again from where the checkpoint comes from"
_SETTINGS, _GENERATION = "tokenizer_config.json", "generation_config.json"
# Qwen's own, of 2023: https://github.com/QwenLM/Qwen/blob/main/tokenization_note.md
_QWEN_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class _Family:
    """A tokenizer class of a checkpoint's code.

    Attributes:
        file: Its list of ranks.
        pieces: The expression that cuts a text into pieces.
        special: Its special tokens, whose ids follow the ranks.
        normalizer: What is done to a text first.
        end: The token that ends a document.
        chat_formats: ``chat_format`` of generation_config.json -> its template, and the tokens that end an answer.
    """

    file: str
    pieces: str
    special: tuple[str, ...]
    normalizer: str
    end: str
    chat_formats: Mapping[str, tuple[str, tuple[str, ...]]]


_FAMILIES: Mapping[str, _Family] = {
    "QWenTokenizer": _Family(
        file="qwen.tiktoken",
        pieces=_QWEN_PIECES,
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))),
        normalizer="NFC",
        end="<|endoftext|>",
        chat_formats={"chatml": (_CHATML, ("<|im_end|>", "<|im_start|>"))},
    )
}


@dataclass(frozen=True)
class MadeTokenizer:
    """A tokenizer of ranks, written as transformers and mlx-lm load it.

    Attributes:
        name: Its class in the checkpoint's code.
        ranks: The file that it is made of.
        size: Number of its ids.
        files: Name to content of what is written instead of the checkpoint's files.
    """

    name: str
    ranks: Path
    size: int
    files: Mapping[str, str]

    @property
    def replaced(self) -> frozenset[str]:
        """Names of the checkpoint's files that are of no use beside these."""
        return frozenset((*self.files, self.ranks.name))

    @property
    def note(self) -> str:
        """What is to be said of it."""
        return f"tokenizer.json is made of {self.ranks.name}; {self.name}, which is code of the checkpoint, is not run"

    @property
    def settings(self) -> dict[str, Any]:
        """What tokenizer_config.json says."""
        found: dict[str, Any] = json.loads(self.files[_SETTINGS])
        return found

    def load(self) -> Any:
        """The tokenizer of transformers."""
        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory() as folder:
            for name, text in self.files.items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def made_tokenizer(folder: Path) -> MadeTokenizer | None:
    """The tokenizer of a checkpoint whose class is one of those above; None for any other.

    Raises:
        TokenizerError: The list of ranks is damaged.
    """
    settings = _read(folder / _SETTINGS)
    name = settings.get("tokenizer_class") or _read(folder / "config.json").get("tokenizer_class")
    family = _FAMILIES.get(name) if isinstance(name, str) else None
    if family is None or not (path := folder / family.file).is_file():
        return None
    with opened(path, TokenizerError) as (fd, size):
        if size > MAX_JSON_BYTES:
            found = f"{path} has {size} bytes; at most {MAX_JSON_BYTES} are expected of a vocabulary"
            raise TokenizerError(found, hint=_AGAIN)
        data = read_exactly(fd, size, 0, path)
    tokens = _tokens(data, path)
    generation = _read(folder / _GENERATION)
    template, ends = family.chat_formats.get(str(generation.get("chat_format")), (None, ()))
    written = _settings(settings, family, template, [*ends, family.end][0])
    files = {"tokenizer.json": _tokenizer_json(tokens, family.file), _SETTINGS: written}
    if generation:
        first = len(tokens)
        special = [first + family.special.index(token) for token in (family.end, *ends)]
        given = generation.get("eos_token_id")
        known = given if isinstance(given, list) else [] if given is None else [given]
        stops = list(dict.fromkeys([*known, *special]))
        text = json.dumps({**generation, "eos_token_id": stops if len(stops) > 1 else stops[0]}, indent=2)
        files[_GENERATION] = text + "\n"
    return MadeTokenizer(str(name), path, len(tokens) + len(family.special), files)


def _read(path: Path) -> dict[str, Any]:
    return read_object(path, SourceError, unique=False) if path.is_file() else {}


@functools.lru_cache(maxsize=2)
def _tokens(data: bytes, path: Path) -> tuple[bytes, ...]:
    """The tokens in the order of their ranks."""
    ranks: dict[int, bytes] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            word, rank = line.split()
            token, place = base64.b64decode(word, validate=True), int(rank)
        except (ValueError, binascii.Error) as error:
            found = f"{path}, line {number}: {line[:80]!r}, expected a token in base64 and its rank"
            raise TokenizerError(found, hint=_AGAIN) from error
        if not token or place in ranks:
            what = "an empty token" if not token else f"the rank {place} again"
            raise TokenizerError(f"{path}, line {number}: {what}", hint=_AGAIN)
        ranks[place] = token
    tokens = tuple(ranks.get(rank, b"") for rank in range(len(ranks)))
    if not all(tokens) or len({*tokens}) != len(tokens):
        what = "holds a token twice" if all(tokens) else f"has no token of rank {tokens.index(b'')}"
        raise TokenizerError(f"{path} {what}", hint=_AGAIN)
    if missing := {bytes([value]) for value in range(256)} - {*tokens}:
        found = f"{path} has no token for the byte {min(missing)[0]}, which a text may hold"
        raise TokenizerError(found, hint=_AGAIN)
    return tokens


@functools.lru_cache(maxsize=2)
def _tokenizer_json(tokens: tuple[bytes, ...], file: str) -> str:
    """What the tokenizers library reads."""
    family = next(family for family in _FAMILIES.values() if family.file == file)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    spelled = _spelling()
    merges = [parts for token in tokens if len(token) > 1 and (parts := _parts(token, ranks)) is not None]
    split = {"type": "Split", "pattern": {"Regex": family.pieces}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    added = [{"id": len(tokens) + place, "content": token, **_FLAGS} for place, token in enumerate(family.special)]
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {"type": family.normalizer},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_]},
            "post_processor": None,
            "decoder": bytes_,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": True,
                "vocab": {token.decode("latin-1").translate(spelled): rank for token, rank in ranks.items()},
                "merges": [[part.decode("latin-1").translate(spelled) for part in pair] for pair in merges],
            },
        },
        ensure_ascii=False,
    )


_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def _parts(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two that tiktoken joins to this token; None where its rules never come to that."""
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        joined = [
            (rank, place)
            for place in range(len(parts) - 1)
            if (rank := ranks.get(parts[place] + parts[place + 1])) is not None
        ]
        if not joined:
            return None
        _, place = min(joined)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return (parts[0], parts[1])


def _spelling() -> dict[int, int]:
    """Byte to the character that stands for it: itself where it is printable, as GPT-2's vocabulary has it."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in printable]
    return {**{value: value for value in printable}, **{value: 256 + place for place, value in enumerate(others)}}


def _settings(given: Mapping[str, Any], family: _Family, template: str | None, end: str) -> str:
    """tokenizer_config.json, without the code that it names."""
    settings = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "eos_token": end,
        "model_max_length": given.get("model_max_length") or 8192,
        "pad_token": family.end,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **({"chat_template": template} if template else {}),
    }
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"

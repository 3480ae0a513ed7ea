"""A list of ranks as tokenizer.json: the ids of tiktoken, and no code of the checkpoint."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mlxport.errors import TokenizerError
from mlxport.source.tiktoken_tokenizer import MadeTokenizer, made_tokenizer
from mlxport.source.tokenizer_loading import load_tokenizer, rendered
from qwen_models import ranks, ranks_file

CHAT = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "你好"))
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
# As the tokenizer's own description has it.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "the theory of the others: they're THEY'RE, we've we'Ve 'tis",
    "<|im_start|>user\nHé 你好，世界 😀 12345 don't\n\n  x<|im_end|>\n<|endoftext|><|extra_204|><|extra_205|>",
    "  two  spaces,\ttabs\r\n\r\n and   \n ends   ",
    "cafe\u0301 \u1100\u1161 not composed",
    "<|im_end|> <|im_END|> <| im_end|>",
    "",
]


def write(folder: Path, tokens: list[bytes], **generation: Any) -> Path:
    (folder / "qwen.tiktoken").write_bytes(ranks_file(tokens))
    settings = {"tokenizer_class": "QWenTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_qwen.Q", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenization_qwen.py").write_text("raise SystemExit('code of the checkpoint ran')\n")
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def made(folder: Path) -> MadeTokenizer:
    found = made_tokenizer(folder)
    assert found is not None
    return found


@cache
def noise() -> list[str]:
    """Texts of characters of many kinds, and of few letters, in which joined pairs overlap."""
    rng = random.Random(0)
    kinds: list[Callable[[], str]] = [
        lambda: rng.choice("the otrs'"),
        lambda: chr(rng.randrange(32, 127)),
        lambda: chr(rng.randrange(0x4E00, 0x9FFF)),
        lambda: chr(rng.randrange(0x80, 0x2FF)),
        lambda: chr(rng.randrange(0x1F600, 0x1F650)),
        lambda: rng.choice(" \n\t\r"),
    ]
    mixed = ["".join(rng.choice(kinds)() for _ in range(80)) for _ in range(60)]
    return mixed + ["".join(rng.choice("the 's") for _ in range(60)) for _ in range(60)]


def odd_ranks() -> list[bytes]:
    """A vocabulary that nobody trained: tokens without parts, and such that several pairs would make."""
    rng = random.Random(1)
    tokens = [bytes([value]) for value in rng.sample(range(256), 256)]
    while len(tokens) < 500:
        token = bytes(rng.choice(b"the 's") for _ in range(rng.randint(2, 5)))
        tokens += [token] if token not in tokens else []
    return tokens


@pytest.mark.parametrize("tokens", [ranks(), odd_ranks()], ids=["trained", "odd"])
def test_ids_are_those_of_tiktoken(tmp_path: Path, tokens: list[bytes]) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    special = {token: len(tokens) + place for place, token in enumerate(SPECIAL)}
    theirs = tiktoken.Encoding(
        "qwen",
        pat_str=PIECES,
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens=special,
    )
    ours = load_tokenizer(write(tmp_path, tokens))
    for text in (*TEXTS, *noise()):
        ids = theirs.encode(unicodedata.normalize("NFC", text), allowed_special="all")
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids)
    assert ours.convert_tokens_to_ids("<|extra_204|>") == len(tokens) + 207 == made(tmp_path).size - 1


def test_a_chat_model_is_told_its_template_and_where_answers_end(tmp_path: Path) -> None:
    write(tmp_path, ranks(), chat_format="chatml", eos_token_id=400, top_p=0.8)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    messages = [{"role": role, "content": content} for role, content in CHAT]
    turns = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in CHAT)
    assert rendered(tokenizer, messages) == turns + "<|im_start|>assistant\n"
    default = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert rendered(tokenizer, messages[1:2]) == default + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    generation = json.loads(made(tmp_path).files["generation_config.json"])
    assert generation == {"chat_format": "chatml", "eos_token_id": [400, 402, 401], "top_p": 0.8}


@pytest.mark.parametrize("generation", [{}, {"chat_format": "raw", "eos_token_id": 400}])
def test_a_base_model_has_no_template(tmp_path: Path, generation: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(write(tmp_path, ranks(), **generation))
    assert tokenizer.chat_template is None and tokenizer.eos_token == "<|endoftext|>"
    written = made(tmp_path).files.get("generation_config.json")
    assert written is None or json.loads(written) == generation


@pytest.mark.parametrize("settings", [{"tokenizer_class": "PreTrainedTokenizerFast"}, {"tokenizer_class": 3}, {}])
def test_other_tokenizers_are_left_alone(tmp_path: Path, settings: dict[str, Any]) -> None:
    write(tmp_path, ranks())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert made_tokenizer(tmp_path) is None


def test_the_class_may_stand_in_the_config_of_the_model(tmp_path: Path) -> None:
    write(tmp_path, ranks())
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text('{"tokenizer_class": "QWenTokenizer"}')
    assert made(tmp_path).name == "QWenTokenizer"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[:9] + data[10:], "line 2"),
        (lambda data: data + b"AAAA 7\n", "the rank 7 again"),
        (lambda data: data + b"AAAA 900\n", "no token of rank 400"),
        (lambda data: data + b"AA== 400\n", "holds a token twice"),
        (lambda data: data.replace(b"AA== 0", b"AAAA 0"), "no token for the byte 0"),
        (lambda data: data + b"AAAA\n", "line 401"),
        (lambda data: b"\x89PNG\r\n", "line 1"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, change: Callable[[bytes], bytes], said: str) -> None:
    write(tmp_path, ranks())
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(TokenizerError, match=said) as caught:
        load_tokenizer(tmp_path)
    assert "qwen.tiktoken" in caught.value.message and caught.value.hint

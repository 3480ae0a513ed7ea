"""Whatever a user's tokenizer files hold: one error of ours that names the file, the setting and the next step."""

from __future__ import annotations

import json
import resource
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import SandboxedEnvironment
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlxport.errors import ConfigError, MlxportError, TokenizerError, UsageError
from mlxport.source import bounded_rendering
from mlxport.source.tokenizer_loading import (
    check_decoder,
    check_settings,
    checked_ends,
    encoded,
    load_tokenizer,
    rendered,
    words_come_back,
)

USER = [{"role": "user", "content": "hi"}]
SYSTEM = [{"role": "system", "content": "be brief"}, *USER]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(ALPHABET)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def wrapped(tokenizer: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"tokenizer_class": 5}, "tokenizer_class is 5, expected a string"),
        ({"tokenizer_class": ["a"]}, "tokenizer_class is ['a']"),
        ({"model_max_length": [512]}, "model_max_length is [512], expected a number"),
        ({"model_max_length": "512"}, "model_max_length is '512'"),
        ({"model_max_length": True}, "model_max_length is True"),
        ({"chat_template": 5}, "chat_template is 5, expected a string or a list or an object"),
        ({"chat_template": [5]}, "chat_template holds 5"),
        ({"chat_template": [{"name": "default"}]}, "under the name 'default'"),
        ({"chat_template": {"default": 5}}, "chat_template holds 5"),
        ({"tool_parser_type": "nope"}, "tool_parser_type is 'nope', and mlx-lm has only"),
        ({"tool_parser_type": "..utils"}, "tool_parser_type is '..utils'"),
        ({"tool_parser_type": 5}, "tool_parser_type is 5"),
        ({"chat_template_type": "nope"}, "chat_template_type is 'nope', and mlx-lm has only deepseek_v32"),
        ({"bos_token": 5}, "bos_token is 5"),
        ({"added_tokens_decoder": 5}, "added_tokens_decoder is 5"),
        ({"extra_special_tokens": "a"}, "extra_special_tokens is 'a'"),
        ({"auto_map": 5}, "auto_map is 5"),
    ],
)
def test_a_setting_that_cannot_be_is_named(folder, settings, named):
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for check in (check_settings, load_tokenizer):
        with pytest.raises(TokenizerError) as caught:
            check(folder)
        assert named in caught.value.message and "tokenizer_config.json" in caught.value.message
        assert caught.value.hint


def test_settings_as_they_are_published(folder):
    settings = {
        "model_max_length": 1e30,
        "tokenizer_class": None,
        "bos_token": {"__type": "AddedToken", "content": "<s>", "special": True, "lstrip": False},
        "chat_template": [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "y"}],
        "tool_parser_type": "json_tools",
        "extra_special_tokens": {},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    check_settings(folder)
    assert load_tokenizer(folder).chat_template == {"default": "x", "tool_use": "y"}


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer_config.json", f'{{"a": {DEEP}}}'),
        ("tokenizer.json", f'{{"a": {DEEP}}}'),
        ("special_tokens_map.json", DEEP),
        ("added_tokens.json", DEEP),
        ("special_tokens_map.json", "5"),
        ("special_tokens_map.json", '{"bos_token": 5}'),
        ("tokenizer.json", "{"),
        # A panic of the library, which is no Exception.
        ("tokenizer.json", '{"model": {}, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}'),
    ],
)
def test_files_that_cannot_be_read(folder, file, text):
    (folder / file).write_text(text)
    with pytest.raises(TokenizerError, match=r"does not load|is not accepted") as caught:
        load_tokenizer(folder)
    assert str(folder) in caught.value.message and "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("template", "kind", "said"),
    [
        ("{{ raise_exception('no system role here') }}", UsageError, "refuses the messages: no system role here"),
        ("{{ nothing() }}", UsageError, "'nothing' is undefined"),
        ("{{ 1 / 0 }}", TokenizerError, "ZeroDivisionError"),
        ("{{ messages + 1 }}", TokenizerError, "TypeError"),
        ("{{ [1] * 10 ** 18 }}", TokenizerError, "it repeats something 1e+18 times"),
        ("{{ 2 * 'a' * 10 ** 8 }}", TokenizerError, "it repeats something 1e+08 times"),
        ("{{ 9 ** (9 ** 9) }}", TokenizerError, "numbers of too many digits"),
        ("{% set n = ('1' * 9000000)|int(0, 2) %}{{ n // 3 }}", TokenizerError, "numbers of too many digits"),
        ("{{ 'a'|center(9999999999) }}", TokenizerError, "MB of memory"),
        ("{{ '%9999999999d' % 1 }}", TokenizerError, "MB of memory"),
        (
            "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
            TokenizerError,
            "MB of memory",
        ),
        ("{{ 'a' * 3000000 }}", TokenizerError, "it writes 3,000,000 characters, expected at most 1,000,040"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", TokenizerError, "OverflowError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", TokenizerError, "RecursionError"),
        ("{% if 1 %}" * 300, TokenizerError, "RecursionError"),
        ("{% for m in %}", TokenizerError, "TemplateSyntaxError"),
        ({"a": "x", "b": "y"}, TokenizerError, "chat templates by name (a, b) and none named default"),
    ],
)
def test_a_template_that_fails(template, kind, said):
    tokenizer = wrapped(byte_level(), chat_template=template)
    with pytest.raises(MlxportError) as caught:
        rendered(tokenizer, USER)
    assert type(caught.value) is kind and said in caught.value.message
    assert "--ignore-chat-template" in caught.value.hint and "--system-prompt" not in caught.value.hint


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [ENDLESS, "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"],
)
@pytest.mark.parametrize("inside", [False, True], ids=["main thread", "another thread"])
def test_a_template_that_does_not_end(template, inside, monkeypatch):
    monkeypatch.setattr(bounded_rendering, "SECONDS", 0.2)
    tokenizer = wrapped(byte_level(), chat_template=template)
    found: list[str] = []

    def render():
        with pytest.raises(TokenizerError) as caught:
            rendered(tokenizer, USER)
        found.append(caught.value.message)

    started = time.monotonic()
    if inside:
        thread = threading.Thread(target=render)
        thread.start()
        thread.join()
    else:
        render()
    assert "it is not done after" in found[0] and time.monotonic() - started < 5


def test_nothing_is_left_of_the_bounds():
    limits = resource.getrlimit(resource.RLIMIT_AS)
    table = SandboxedEnvironment.intercepted_binops, SandboxedEnvironment.default_binop_table
    with bounded_rendering.bounded(0.05):
        pass
    with pytest.raises(KeyError), bounded_rendering.bounded(0.05):
        raise KeyError("its own errors are left as they are")
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
    assert (SandboxedEnvironment.intercepted_binops, SandboxedEnvironment.default_binop_table) == table
    end = time.monotonic() + 0.2
    while time.monotonic() < end:  # nothing is raised here, later
        pass


def test_a_long_conversation_is_rendered():
    tokenizer = wrapped(
        byte_level(), chat_template="{% for m in messages %}<{{ m.role * 2 }}>{{ m.content }}{% endfor %}"
    )
    text = "word " * 300_000
    assert rendered(tokenizer, [{"role": "user", "content": text}] * 3) == ("<useruser>" + text) * 3


def test_a_refused_system_prompt_may_be_left_out():
    tokenizer = wrapped(byte_level(), chat_template="{{ raise_exception('no') if messages[0].role == 'system' }}")
    assert rendered(tokenizer, USER) == ""
    with pytest.raises(UsageError) as caught:
        rendered(tokenizer, SYSTEM)
    assert caught.value.hint.startswith("leave out --system-prompt")


def test_a_text_that_cannot_be_encoded():
    words = wrapped(Tokenizer(models.WordLevel(vocab={"A": 0, "C": 1}, unk_token="[UNK]")))
    with pytest.raises(TokenizerError, match="cannot encode 'hi'"):
        encoded(words, "hi")
    with pytest.raises(UsageError, match="not valid Unicode: 'hi.{1,2}udcff'"):
        encoded(wrapped(byte_level()), "hi\udcff")
    assert check_decoder(words, Path("dna")) is None


def metaspace() -> Tokenizer:
    letters = {char: index for index, char in enumerate("▁" + "".join(ALPHABET))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def word_pieces() -> Tokenizer:
    pieces = {piece: index for index, piece in enumerate([*ALPHABET, *(f"##{char}" for char in ALPHABET), "[UNK]"])}
    tokenizer = Tokenizer(models.WordPiece(vocab=pieces, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def suffixes() -> Tokenizer:
    pieces = {piece: index for index, piece in enumerate([*ALPHABET, *(f"{char}</w>" for char in ALPHABET)])}
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=[], end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    return tokenizer


SENTENCEPIECE = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


@pytest.mark.parametrize(
    ("make", "others"),
    [
        (byte_level, [SENTENCEPIECE, decoders.Metaspace(), decoders.WordPiece(), decoders.Fuse(), None]),
        (metaspace, [decoders.ByteLevel(), decoders.WordPiece(), decoders.Fuse(), None]),
        (word_pieces, [decoders.ByteLevel(), SENTENCEPIECE, None]),
        (suffixes, [decoders.ByteLevel(), SENTENCEPIECE, None]),
    ],
)
def test_a_decoder_for_another_vocabulary(make, others, tmp_path):
    right = make()
    back = check_decoder(wrapped(right), tmp_path)
    assert back is not None and words_come_back(back)
    for other in others:
        file = tmp_path / "tokenizer.json"
        make().save(str(file))
        content = json.loads(file.read_text())
        content["decoder"] = None if other is None else json.loads(other.__getstate__())
        file.write_text(json.dumps(content))
        with pytest.raises(TokenizerError, match="does not give back its own text") as caught:
            check_decoder(load_tokenizer(tmp_path), tmp_path)
        # What the hint says makes it right.
        hint = caught.value.hint
        content["decoder"] = json.loads(hint[hint.index(": ") + 2 : hint.rindex(" in its")])
        file.write_text(json.dumps(content))
        assert check_decoder(load_tokenizer(tmp_path), tmp_path) == back


def test_a_tokenizer_that_normalizes_is_right(tmp_path):
    tokenizer = word_pieces()
    tokenizer.normalizer = normalizers.Lowercase()
    back = check_decoder(wrapped(tokenizer), tmp_path)
    assert back is not None and back.startswith("hello, you") and words_come_back(back)
    assert not words_come_back("h e l l o")


@pytest.mark.parametrize(("given", "ends"), [(None, None), (2, [2]), ([2, 5], [2, 5]), ([], None)])
def test_the_ids_that_end_a_text(given, ends):
    assert checked_ends(given, "config.json") == ends


@pytest.mark.parametrize("given", ["x", 1.5, ["x"], [[1]], {"a": 1}, True])
def test_ids_that_are_none(given):
    with pytest.raises(ConfigError, match=r"config\.json: eos_token_id is .*, expected a token id"):
        checked_ends(given, "config.json")

"""Mutated tokenizer files and templates: ``generate`` and the check of a tokenizer give text or one of our errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import bounded_memory
from fuzzing import fuzz
from mlxport import MlxportError
from mlxport.parity.tokenizer import check_tokenizer
from mlxport.run import generate
from mlxport.source import open_checkpoint

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 3, 255, 2**31, 2**63, 10**400, 0.5, 1e308]),
    st.sampled_from(["", "x", "../x", "\0", "\ud800", "é" * 300, "ByteLevel", "▁", "<|end|>", "default", "gpt2"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
DEEP = st.sampled_from(
    ["[" * 100_000, "[" * 500 + "]" * 500, '{"a":' * 3000 + "1" + "}" * 3000, "", "{", "5", "null", "\ufeff{}"]
)
SETTINGS = [
    *("tokenizer_class", "model_max_length", "chat_template", "bos_token", "eos_token", "unk_token", "pad_token"),
    *("added_tokens_decoder", "extra_special_tokens", "additional_special_tokens", "auto_map", "padding_side"),
    *("tool_parser_type", "chat_template_type", "clean_up_tokenization_spaces", "split_special_tokens", "legacy"),
    *("add_prefix_space", "add_bos_token", "model_input_names", "truncation_side", "processor_class", "backend"),
]
EXPRESSIONS = [
    "messages",
    "messages[0]",
    "messages[0].content",
    "1",
    "'x'",
    "none",
    "loop",
    "x.y",
    "range(9)",
    "eos_token",
]
TEMPLATES = st.lists(
    st.sampled_from(
        [
            *(
                f"{{{{ {one} {op} {two} }}}}"
                for one in EXPRESSIONS
                for op in "+*/-|."
                for two in ("1", "length", "content")
            ),
            "{% for m in messages %}",
            "{% endfor %}",
            "{{ m.content }}",
            "{% if x %}",
            "{% endif %}",
            "{{ raise_exception('no') }}",
            "{{ ''.__class__ }}",
            "{% break %}",
            "{{ strftime_now(5) }}",
            "{# open",
            "é\u2028\ud800",
        ]
    ),
    max_size=5,
).map("".join)


@pytest.fixture(scope="module", autouse=True)
def bounded() -> Iterator[None]:
    with bounded_memory():
        yield


@pytest.fixture
def bench(llama: Path, tmp_path: Path) -> Callable[[Callable[[Path], object]], None]:
    """Mutates a copy of a model and uses it."""

    def use(mutate: Callable[[Path], object]) -> None:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(llama, folder)
        mutate(folder)
        attempts: list[Callable[[], Any]] = [
            lambda: generate(folder, "hi you", max_tokens=3, on_warning=lambda line: None),
            lambda: check_tokenizer(folder, open_checkpoint(folder)),
        ]
        for attempt in attempts:
            try:
                attempt()
            except MlxportError as error:
                assert error.message and error.hint and "\n" not in error.message
                error.message.encode()  # it can be printed

    return use


def write(name: str, value: Any) -> Callable[[Path], object]:
    text = value if isinstance(value, (str, bytes)) else json.dumps(value)
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return lambda folder: (folder / name).write_bytes(data)


@fuzz(60)
@given(name=st.sampled_from(SETTINGS), value=VALUES)
def test_settings(bench, name, value):
    def mutate(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    bench(mutate)


@fuzz(60)
@given(template=TEMPLATES)
def test_templates(bench, template):
    bench(write("chat_template.jinja", template))


FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]


@fuzz(50)
@given(
    name=st.sampled_from([*FILES, "generation_config.json", "chat_template.jinja"]),
    value=VALUES | DEEP | st.binary(max_size=20),
)
def test_whole_files(bench, name, value):
    bench(write(name, value))


@fuzz(30)
@given(value=VALUES)
def test_ends(bench, value):
    bench(write("generation_config.json", {"eos_token_id": value}))


PARTS = [
    "model",
    "decoder",
    "pre_tokenizer",
    "normalizer",
    "post_processor",
    "added_tokens",
    "truncation",
    "padding",
    "version",
]
KINDS = [
    *("ByteLevel", "Metaspace", "WordPiece", "BPEDecoder", "CTC", "Fuse", "Strip", "Replace", "Sequence", "Lowercase"),
    *("NFKC", "Precompiled", "Split", "Digits", "TemplateProcessing", "BertProcessing", "Unigram", "WordLevel", "BPE"),
]


@fuzz(80)
@given(data=st.data())
def test_parts_of_the_tokenizer(bench, data):
    part = data.draw(st.sampled_from(PARTS))
    kind = data.draw(st.sampled_from(KINDS))
    fields = data.draw(
        st.dictionaries(
            st.sampled_from(
                ["pattern", "content", "start", "stop", "decoders", "prefix", "cleanup", "replacement", "vocab"]
            ),
            VALUES | st.sampled_from([{"String": " "}, {"Regex": "("}, {"Regex": "."}]),
            max_size=3,
        )
    )
    value = data.draw(st.sampled_from([{"type": kind, **fields}, None, []]) | VALUES)

    def mutate(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), part: value}))

    bench(mutate)

"""Qwen-Chat of 2023, whose model and tokenizer are code of its checkpoint: converted, verified and run without it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

import mlxport
from mlxport.convert.convert_report import ConvertReport
from mlxport.errors import UnsupportedError
from mlxport.run.chat import chat
from mlxport.run.generate import generate
from qwen_models import TRAINED, write_qwen

Converted = tuple[Path, Path, ConvertReport]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converted]:
    root = tmp_path_factory.mktemp("qwen")
    source, out = write_qwen(root / "in"), root / "out"
    yield source, out, mlxport.convert(source, out, quantize=8, q_group_size=32, quiet=True)
    assert not (root / "ran").exists()


def test_the_output_is_verified_up_to_the_trained_length(converted: Converted) -> None:
    _, out, report = converted
    assert report.layout == "mlx-lm" and report.parity is not None and report.parity.passed
    assert report.parity.comparisons[-1].max_abs < 1e-4  # the same stored weights in torch
    assert report.parity.positions is not None
    assert report.parity.positions.proven == report.parity.positions.end == TRAINED
    assert report.tokenizer is not None and report.tokenizer.chat_template
    assert any(f"exact up to {TRAINED} tokens" in note for note in report.notes)
    assert any("qwen.tiktoken" in note for note in report.notes)
    assert json.loads((out / "config.json").read_text())["max_position_embeddings"] == TRAINED


def test_the_folder_holds_no_code_and_no_list_of_ranks(converted: Converted) -> None:
    _, out, _ = converted
    names = {path.name for path in out.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= names
    assert not [name for name in names if name.endswith((".py", ".tiktoken"))]
    assert not [path for path in out.glob("*.json") if "auto_map" in path.read_text()]
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [400, 402, 401]


def test_mlx_lm_loads_it_as_it_is(converted: Converted) -> None:
    from mlx_lm import generate as their_generate
    from mlx_lm import load

    _, out, _ = converted
    model, tokenizer = load(str(out))
    assert tokenizer.eos_token_ids == {400, 401, 402}
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "the"}], add_generation_prompt=True)
    their_generate(model, tokenizer, prompt, max_tokens=3)


def test_it_answers_and_says_where_it_is_no_longer_right(converted: Converted) -> None:
    _, out, _ = converted
    said: list[str] = []
    short = generate(out, "the", max_tokens=3, ignore_chat_template=True, on_warning=said.append)
    assert short.tokens and not said
    generate(out, "the " * 2 * TRAINED, max_tokens=1, ignore_chat_template=True, on_warning=said.append)
    long = generate(out, "12" * (TRAINED // 2 - 1), max_tokens=3, ignore_chat_template=True, on_warning=said.append)
    assert long.prompt_tokens == TRAINED - 2 and len(long.tokens) == 3
    assert len(said) == 2 and all(str(TRAINED) in line for line in said)
    answers, remarks = StringIO(), StringIO()
    chat(out, max_tokens=2, stdin=StringIO("Hi\n"), stdout=answers, stderr=remarks)
    assert answers.getvalue() and "Generation: 2 tokens" in remarks.getvalue()


def test_layerwise(converted: Converted) -> None:
    source, out, _ = converted
    report = mlxport.verify(out, source, mode="layerwise")
    assert report.passed and getattr(report, "layers", ())


def test_it_is_told_before_anything_is_written(converted: Converted) -> None:
    source, _, _ = converted
    seen = mlxport.inspect(source)
    assert seen.tokenizer is not None and seen.tokenizer.vocabulary == 608 and seen.tokenizer.chat_template
    planned = mlxport.plan_for(source, device="M2 8GB")
    assert planned.context_limit == TRAINED and any("exact up to" in note for note in planned.notes)


def test_other_rotations_are_refused(tmp_path: Path) -> None:
    source = write_qwen(tmp_path / "in", rotary_emb_base=1_000_000)
    with pytest.raises(UnsupportedError, match="rotary_emb_base"):
        mlxport.convert(source, tmp_path / "out", quiet=True)

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from verify_models import checkpoint_of, convert

from mlxport.errors import TokenizerError
from mlxport.model.texts import PROBE_TEXT, TRICKY_TEXT
from mlxport.model.tokens import probe_ids
from mlxport.parity import perplexity, verify
from mlxport.parity.tokenizer import check_tokenizer

TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
EXAMPLES = Path(__file__).parents[2] / "examples"


def save_tokenizer(folder: Path, size: int = 320) -> None:
    """A byte-level BPE of ``size`` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([PROBE_TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))


@pytest.fixture
def pair(sources, tmp_path):
    """A checkpoint and its conversion, both with a tokenizer."""
    source = tmp_path / "source"
    shutil.copytree(sources("llama").root, source)
    made = convert(checkpoint_of(source), tmp_path / "output")
    for folder in (source, made.folder):
        save_tokenizer(folder)
    return made


def test_the_same_tokenizer_passes(pair):
    report = check_tokenizer(pair.folder, pair.checkpoint)
    assert (report.size, report.rows, report.lossless, report.chat_template) == (320, 320, True, True)
    assert report.tokens > 100 and report.notes == ()
    assert json.loads(json.dumps(report.to_json()))["lossless"] is True
    assert "lossless" in report.summary()


def no_files(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def other_vocabulary(folder):
    save_tokenizer(folder, 300)


def other_template(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": "hello"}))


def other_decoder(folder):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "decoder": None}))


def malformed(folder):
    (folder / "tokenizer.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_files, "has no tokenizer"),
        (other_vocabulary, "differs from the source's"),
        (other_template, "chat template"),
        (other_decoder, "it decodes to"),
        (malformed, "does not load"),
    ],
)
def test_a_damaged_tokenizer_is_refused(pair, damage, said):
    damage(pair.folder)
    with pytest.raises(TokenizerError, match=said):
        check_tokenizer(pair.folder, pair.checkpoint)


def test_a_tokenizer_for_more_rows_than_there_are(pair):
    for folder in (pair.folder, pair.checkpoint.root):
        save_tokenizer(folder, 400)
    with pytest.raises(TokenizerError, match=r"for another vocabulary: ids up to 399, the embedding has 320 rows"):
        check_tokenizer(pair.folder, pair.checkpoint)


def test_an_added_token_beyond_the_embedding_is_a_note(pair):
    for folder in (pair.folder, pair.checkpoint.root):
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        content["added_tokens"].append({"id": 320, "content": "<image>", "special": False, **flags})
        path.write_text(json.dumps(content))
    assert check_tokenizer(pair.folder, pair.checkpoint).notes == (
        "added tokens without a row in the embedding: <image>",
    )


def test_inputs_are_the_text_by_the_models_own_tokenizer(pair):
    from transformers import AutoTokenizer

    ids, notes = probe_ids(pair.checkpoint.root, 320, 64)
    assert notes == () and [len(i) for i in ids] == [64, 19]
    tokenizer = AutoTokenizer.from_pretrained(pair.checkpoint.root)
    assert PROBE_TEXT.startswith(tokenizer.decode(ids[0], skip_special_tokens=True)[:40])
    assert tokenizer.decode(tokenizer.encode(TRICKY_TEXT)) == TRICKY_TEXT
    report = verify(pair.folder, pair.checkpoint, invert=pair.invert, tokens=64)
    assert report.passed and not any("pseudo-random" in note for note in report.notes)


def test_ids_beyond_the_vocabulary_are_left_out_and_said(pair):
    ids, notes = probe_ids(pair.checkpoint.root, 290, 64)
    assert max(i.max() for i in ids) < 290 and "lie outside the vocabulary" in notes[0]


def test_without_a_tokenizer_inputs_are_fixed_ids(sources):
    first, notes = probe_ids(sources("llama").root, 320, 50)
    again, _ = probe_ids(sources("llama").root, 320, 50)
    assert [i.tolist() for i in first] == [i.tolist() for i in again]
    assert "no tokenizer" in notes[0]


def test_perplexity_is_that_of_transformers_loss(pair):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(pair.checkpoint.root)(PROBE_TEXT, return_tensors="pt").input_ids[:, :100]
    model = AutoModelForCausalLM.from_pretrained(pair.checkpoint.root, dtype=torch.float32)
    with torch.inference_mode():
        expected = model(ids, labels=ids).loss.item()
    ours = perplexity(pair.folder, PROBE_TEXT, max_tokens=100)
    theirs = perplexity(pair.checkpoint, PROBE_TEXT, max_tokens=100)
    assert ours.nll == pytest.approx(expected, rel=1e-5) == theirs.nll
    assert (ours.tokens, ours.windows) == (99, 1)
    assert ours.value == pytest.approx(math.exp(expected), rel=1e-4)
    assert perplexity(pair.folder, PROBE_TEXT, max_tokens=100, window=30).windows == 4


def test_perplexity_needs_a_tokenizer(sources):
    with pytest.raises(TokenizerError, match="no tokenizer"):
        perplexity(replace(sources("llama")), "some text")


def sharper(folder: Path) -> Path:
    """The example with logits four times as large, which a coarse rounding damages far more."""
    shutil.copytree(EXAMPLES / "tiny-llama", folder)
    shard = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]["lm_head.weight"]
    save_file({k: v * 4 if k == "lm_head.weight" else v for k, v in load_file(shard).items()}, shard, {"format": "pt"})
    return folder


@pytest.mark.parametrize("quantize", [None, {"bits": 4, "group_size": 64}, {"bits": 2, "group_size": 64}], ids=str)
def test_a_trained_model_passes_at_every_quality(tmp_path, quantize):
    coarse = quantize is not None and quantize["bits"] == 2
    checkpoint = checkpoint_of(sharper(tmp_path / "source") if coarse else EXAMPLES / "tiny-llama")
    made = convert(checkpoint, tmp_path / "output", quantize=quantize)
    for path in [*checkpoint.root.glob("*token*"), checkpoint.root / "chat_template.jinja"]:
        shutil.copy(path, made.folder)
    assert check_tokenizer(made.folder, checkpoint).rows == 2048
    report = verify(made.folder, checkpoint, invert=made.invert, mode="full", tokens=200)
    assert report.passed, report.failure_message()
    assert bool(report.warnings) == coarse
    if quantize is None:
        text = (EXAMPLES / "heldout.txt").read_text()
        assert perplexity(made.folder, text, max_tokens=2048).nll == pytest.approx(2.598, abs=0.01)


def test_a_token_that_transformers_adds_itself_is_a_note(sources, tmp_path):
    """qwen2's class adds its own end of text to a vocabulary that fills the embedding."""
    source = checkpoint_of(Path(shutil.copytree(sources("qwen2").root, tmp_path / "source")))
    save_tokenizer(source.root, 320)
    config = source.root / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tokenizer_class": "Qwen2Tokenizer"}))
    made = convert(source, tmp_path / "out")
    for path in source.root.glob("*token*"):
        shutil.copy(path, made.folder)
    report = check_tokenizer(made.folder, source)
    assert report.rows == 320 and "added tokens without a row" in report.notes[0]

"""Translation and what is like it: of each family, as published, the tokens and the text of transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers

import mlxport
import sequence_models
from checkpoints import edit_json, split
from mlxport.run.load import load
from sequence_models import randomised

TEXTS = ("translate english to german: the cat is on a mat", "Straße naïve 42!")
TOKENS = 12
# No token twice, and no end: so that the tokens say where they differ.
RULES: dict[str, Any] = {
    "no_repeat_ngram_size": 1,
    "suppress_tokens": [1, 2, 3],
    "max_length": TOKENS + 1,
    "forced_eos_token_id": None,
}
T5 = {**sequence_models.T5, "vocab_size": 200, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
BART = {**sequence_models.BART, "decoder_start_token_id": 2, "pad_token_id": 1, "eos_token_id": 2}


def pieces(path: Path, size: int, **special: int) -> list[str]:
    """A sentencepiece model in a file; its pieces."""
    lines = [f"translate english to german: the cat {number} is on a mat" for number in range(100)]
    with open(path, "wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, vocab_size=size, minloglevel=2, **special
        )
    made = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return [made.id_to_piece(number) for number in range(made.get_piece_size())]


def t5_tokenizer(folder: Path) -> Any:
    pieces(folder / "spiece.model", 40, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    return transformers.T5Tokenizer.from_pretrained(str(folder), extra_ids=100)


def m2m_tokenizer(folder: Path) -> Any:
    names = ["<s>", "<pad>", "</s>", "<unk>", *pieces(folder / "spm.model", 36)[3:]]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    return transformers.M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "spm.model"))


def in_shards(model: Any, folder: Path) -> None:
    """Weights as the large T5s are published: pickles, with an index."""
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for name, held in split(model.state_dict(), 3).items():
        file = f"pytorch_model-{name}.bin"
        torch.save({key: value.clone() for key, value in held.items()}, folder / file)
        weight_map |= dict.fromkeys(held, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


# By name: the type of model, what its config is given, what makes the tokenizer, and two languages where it has some.
FAMILIES: dict[str, tuple[str, dict[str, Any], Callable[[Path], Any], tuple[str, str] | None]] = {
    "t5": ("t5", T5, t5_tokenizer, None),
    "mt5": ("mt5", T5, t5_tokenizer, None),
    "umt5": ("umt5", T5, t5_tokenizer, None),
    "byt5": ("t5", {**T5, "vocab_size": 384}, lambda folder: transformers.ByT5Tokenizer(), None),
    "m2m_100": ("m2m_100", {**BART, "vocab_size": 200}, m2m_tokenizer, ("de", "fr")),
    "nllb": (
        "m2m_100", {**BART, "vocab_size": 207}, lambda folder: transformers.NllbTokenizer(), ("deu_Latn", "fra_Latn"),
    ),
    "mbart": (
        "mbart", {**BART, "vocab_size": 60}, lambda folder: transformers.MBart50Tokenizer(), ("de_DE", "fr_XX"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def translators(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Any, Path]]:
    """Original, its tokenizer's folder and the converted folder of a family, made once."""

    @cache
    def made(name: str) -> tuple[Any, Path, Path]:
        folder = tmp_path_factory.mktemp(name)
        source = folder / "source"
        source.mkdir()
        kind, settings, tokenizer, _ = FAMILIES[name]
        tokenizer(source).save_pretrained(source)
        model = randomised(transformers.AutoConfig.for_model(kind, **settings))
        model.generation_config.update(**RULES)
        model.save_pretrained(source)
        if name == "t5":
            in_shards(model, source)
        mlxport.convert(source, folder / "made", verify="none", quiet=True)
        return model, source, folder / "made"

    return made


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_writes_what_transformers_writes(translators, command, name, beams):
    model, source, folder = translators(name)
    languages = FAMILIES[name][3]
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    chosen = dict(zip(("src_lang", "tgt_lang"), languages, strict=True)) if languages else {}
    flags = ["--source-lang", languages[0], "--target-lang", languages[1]] if languages else []
    loaded = load(folder)
    for text in TEXTS:
        make = tokenizer._build_translation_inputs if languages else tokenizer
        read = {key: value for key, value in make(text, return_tensors="pt", **chosen).items() if "type" not in key}
        with torch.no_grad():
            wanted = model.generate(**read, num_beams=beams)[0, 1:]
        given = dict(zip(("source_lang", "target_lang"), languages, strict=True)) if languages else {}
        got = mlxport.generate(loaded, text, num_beams=beams, **given)
        assert len(set(wanted.tolist())) == TOKENS
        assert list(got.tokens) == wanted.tolist()
        assert got.text == tokenizer.decode(wanted, skip_special_tokens=True)
        code, out, err = command(folder, text, "--num-beams", str(beams), *flags)
        assert (code, out) == (0, f"{got.text}\n"), err


def test_a_text_is_cut_only_where_that_is_asked_for(translators, command):
    model, source, folder = translators("mbart")
    long = "the cat is on a mat " * 20
    code, out, err = command(folder, long)
    assert (code, out) == (2, "") and "reads at most 96" in err and "--truncate" in err
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    read = tokenizer(long, return_tensors="pt", truncation=True, max_length=96)
    with torch.no_grad():
        wanted = model.generate(read["input_ids"], attention_mask=read["attention_mask"], num_beams=1)[0, 1:]
    assert list(mlxport.generate(folder, long, truncate=True, num_beams=1).tokens) == wanted.tolist()
    code, out, _ = command(folder, long, "--truncate", "--num-beams", "1", "--json")
    assert code == 0 and json.loads(out)[0]["generated_text"] == tokenizer.decode(wanted, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["t5", "umt5", "byt5"])
def test_a_model_of_distances_reads_more_than_it_was_made_for_and_says_so(translators, tmp_path, command, name):
    model, source, made = translators(name)
    folder = shutil.copytree(made, tmp_path / "made")
    edit_json(folder / "tokenizer_config.json", model_max_length=20)
    edit_json(folder / "config.json", n_positions=20)  # as t5-small has it, and nothing reads it
    text = "the cat is on a mat " * 6
    ids = transformers.AutoTokenizer.from_pretrained(source)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = model.generate(ids, attention_mask=torch.ones_like(ids), num_beams=1)[0, 1:].tolist()
    told: list[str] = []
    assert list(mlxport.generate(folder, text, num_beams=1, on_warning=told.append).tokens) == wanted
    assert [note for note in told if f"a text has {ids.shape[1]} tokens, and this model was made for 20" in note]
    with pytest.warns(UserWarning, match="was made for 20: expect a poor answer, or add --truncate"):
        assert command(folder, text, "--num-beams", "1")[0] == 0
    assert mlxport.generate(folder, text, truncate=True).prompt_tokens == 20


def test_a_decoder_writes_no_more_than_it_has_positions(translators, tmp_path):
    folder = shutil.copytree(translators("mbart")[2], tmp_path / "made")
    edit_json(folder / "generation_config.json", no_repeat_ngram_size=0, max_length=None)
    told: list[str] = []
    made = mlxport.generate(folder, "the cat", max_tokens=200, on_warning=told.append)
    assert made.generation_tokens == 96 and made.finish_reason == "length"
    assert told == ["--max-tokens 200: this decoder has 96 positions, and writes no more tokens"]
    assert mlxport.generate(folder, "the cat", on_warning=told.append).generation_tokens == 96 and len(told) == 1

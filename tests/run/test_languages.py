"""Languages of a tokenizer are those that transformers' translation takes, and are told as it tells them."""

from __future__ import annotations

import json

import pytest
import sentencepiece
from transformers import M2M100Tokenizer, MBart50Tokenizer, MBartTokenizer, NllbTokenizer, PreTrainedTokenizerFast

from checkpoints import write_tokenizer
from mlxport.errors import UsageError
from mlxport.run.languages import languages_of, reading_in, token_of


def many_languages(folder):
    """A tokenizer of M2M100, whose pieces sentencepiece makes."""
    lines = [f"hello small world number {number}" for number in range(100)]
    with open(folder / "spm.model", "wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, vocab_size=30, minloglevel=2
        )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    names = ["<s>", "<pad>", "</s>", "<unk>", *(pieces.id_to_piece(number) for number in range(3, 30))]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    return M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "spm.model"))


MADE = {
    "nllb": (lambda folder: NllbTokenizer(), "fra_Latn", "deu_Latn"),
    "mbart": (lambda folder: MBartTokenizer(), "fr_XX", "de_DE"),
    "mbart50": (lambda folder: MBart50Tokenizer(), "fr_XX", "de_DE"),
    "m2m_100": (many_languages, "fr", "de"),
}


@pytest.mark.parametrize("name", MADE)
def test_languages_are_told_as_in_a_translation(name, tmp_path):
    make, target, source = MADE[name]
    tokenizer = make(tmp_path)
    before = tokenizer("hello").input_ids
    with reading_in(tokenizer, source):
        got = tokenizer("hello").input_ids
    assert tokenizer("hello").input_ids == before != got
    wanted = tokenizer._build_translation_inputs("hello", return_tensors=None, src_lang=source, tgt_lang=target)
    assert got == wanted["input_ids"]
    assert token_of(tokenizer, target, "--target-lang") == wanted["forced_bos_token_id"]
    assert len(languages_of(tokenizer)) > 20
    with pytest.raises(UsageError, match="--target-lang Klingon: no such language"):
        token_of(tokenizer, "Klingon", "--target-lang")
    with pytest.raises(UsageError, match="--source-lang xx") as caught, reading_in(tokenizer, "xx"):
        pass
    assert "more" in str(caught.value.hint)


def test_a_tokenizer_without_languages_says_so(tmp_path):
    write_tokenizer(tmp_path, 40)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    with reading_in(tokenizer, None):
        assert languages_of(tokenizer) == {}
    with pytest.raises(UsageError, match="no tokens for languages") as caught:
        token_of(tokenizer, "fr", "--target-lang")
    assert "translate English to German" in str(caught.value.hint)

"""What is streamed is what ``tokenizer.decode`` gives of all tokens, whatever the decoder, and never taken back."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from mlxport.model.texts import PROBE_TEXT, TRICKY_TEXT
from mlxport.run.detokenizer import StreamedText

CLEAN = {"clean_up_tokenization_spaces": True}
FORCED = {**CLEAN, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True}
# What clean-up patterns are made of, and what stands between them.
PIECES = [" ", "a", ".", ",", "'", "n", "'t", "n't", "'s", "v", "'ve", "re", " '", " n", " n'", " ' ", "m", "\n", "!"]


def wrapped(tokenizer: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def byte_level(**options: Any) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([PROBE_TEXT], trainer)
    return wrapped(tokenizer, eos_token="</s>", **options)


def sentencepiece(strip: bool = True, **options: Any) -> PreTrainedTokenizerFast:
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcenrtsv.,!'\n", "▁a", "▁n", "▁.", "▁the"]
    tokenizer = Tokenizer(
        models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[], byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    stages = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*stages, decoders.Strip(" ", 1, 0)] if strip else stages)
    return wrapped(tokenizer, **options)


def word_level(decoder: Any, names: list[str] = PIECES) -> Callable[..., PreTrainedTokenizerFast]:
    def made(**options: Any) -> PreTrainedTokenizerFast:
        vocabulary = {name: index for index, name in enumerate(["[UNK]", *names])}
        tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        if decoder is not None:
            tokenizer.decoder = decoder
        return wrapped(tokenizer, unk_token="[UNK]", **options)

    return made


def no_spaces(**options: Any) -> Any:
    return sentencepiece(strip=False, **options)


MAKERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "byte level": (byte_level, {}),
    "byte level, clean-up that transformers ignores": (byte_level, CLEAN),
    "byte level, clean-up forced": (byte_level, FORCED),
    "SentencePiece": (sentencepiece, {}),
    "SentencePiece, clean-up forced": (sentencepiece, FORCED),
    "SentencePiece, first space kept": (no_spaces, {}),
    "words, clean-up": (word_level(decoders.Fuse()), CLEAN),
    "words without a decoder": (word_level(None), {}),
    "words without a decoder, clean-up": (word_level(None), CLEAN),
    "WordPiece": (word_level(decoders.WordPiece(), ["##a", "b", "##ing", "'", ".", "n't", "'s", "don"]), CLEAN),
    "Metaspace": (word_level(decoders.Metaspace(), ["▁a", "▁", "b", "▁.", "▁▁", "'"]), {}),
    "suffixes": (word_level(decoders.BPEDecoder("</w>"), ["a</w>", "b", "c</w>", ".</w>", "</w>"]), {}),
    "one character for a run": (word_level(decoders.CTC(), ["<pad>", "a", "b", "|", "'"]), CLEAN),
    "lines spelled out": (
        word_level(decoders.Sequence([decoders.Fuse(), decoders.Replace("<n>", "\n")]), ["a", "<", "n", ">", "<n>"]),
        {},
    ),
    "bytes of a Python class": (lambda **options: ByT5Tokenizer(**options), {}),
}


def sequences(tokenizer: Any) -> list[list[int]]:
    """Tokens of a text, cut anywhere, and any tokens at all."""
    chance = random.Random(0)
    written = tokenizer.encode(TRICKY_TEXT + "🙂🙂 깰깰", add_special_tokens=False)
    made = [written[chance.randrange(len(written)) :][: chance.randrange(1, 60)] for _ in range(40)]
    for length in (1, 2, 3, 5, 8, 13, 60):
        made += [[chance.randrange(len(tokenizer)) for _ in range(length)] for _ in range(12)]
        few = [chance.randrange(len(tokenizer)) for _ in range(3)]
        made += [[chance.choice(few) for _ in range(length)] for _ in range(3)]
    return [written, *made]


@pytest.mark.parametrize("name", MAKERS)
def test_the_pieces_are_what_decode_gives_of_all(name):
    make, options = MAKERS[name]
    tokenizer = make(**options)
    streamed = StreamedText(tokenizer)
    for tokens in sequences(tokenizer):
        streamed.reset()
        pieces = []
        for token in tokens:
            streamed.add_token(token)
            pieces.append(streamed.last_segment)
        streamed.finalize()
        pieces.append(streamed.last_segment)
        assert "".join(pieces) == streamed.text == tokenizer.decode(tokens), tokens
        assert streamed.tokens == tokens


@pytest.mark.parametrize(
    ("make", "text"),
    [(byte_level, PROBE_TEXT[:1200]), (sentencepiece, "the rest, a vast nest. bats eat an ant's\n" * 9)],
)
def test_text_comes_as_soon_as_it_is_certain(make, text):
    """Not at the end, and a long text costs no more per token than a short one."""
    tokenizer = make()
    decoded: list[int] = []
    streamed = StreamedText(tokenizer)
    whole = tokenizer.encode(text, add_special_tokens=False)
    plain = tokenizer.decode

    def counted(tokens: list[int], **options: Any) -> str:
        decoded.append(len(tokens))
        return str(plain(tokens, **options))

    tokenizer.decode = counted
    late = 0
    for place, token in enumerate(whole, 1):
        streamed.add_token(token)
        late = max(late, len(plain(whole[:place])) - len(streamed.text))
    assert late <= 1
    assert max(decoded) <= 40 < len(whole)


@pytest.mark.parametrize(
    ("tokens", "certain"),
    [
        (["▁", "▁", "▁", "▁a"], ["", " ", "  ", "   a"]),
        (["a", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "b"], ["a", "a", "a", "a", "a", "a🙂b"]),
        # A character that is whole is taken apart again by a broken one after it.
        (["<0xC3>", "<0xA9>", "<0xC3>", "a"], ["", "", "", "\ufffd\ufffd\ufffda"]),
    ],
)
def test_what_waits_in_sentencepiece(tokens, certain):
    tokenizer = sentencepiece()
    streamed = StreamedText(tokenizer)
    seen = []
    for token in tokenizer.convert_tokens_to_ids(tokens):
        streamed.add_token(token)
        seen.append(streamed.text)
    assert seen == certain


def test_a_decode_that_depends_on_the_whole_text_waits_for_the_end():
    class Backwards(PreTrainedTokenizerFast):
        def decode(self, *args: Any, **kwargs: Any) -> str:
            return str(super().decode(*args, **kwargs))[::-1]

    tokenizer = Backwards(tokenizer_object=byte_level().backend_tokenizer)
    streamed = StreamedText(tokenizer)
    for token in tokenizer.encode("Hi you"):
        streamed.add_token(token)
        assert streamed.last_segment == ""
    streamed.finalize()
    assert streamed.last_segment == "uoy iH"

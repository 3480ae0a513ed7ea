"""Languages that a tokenizer has tokens for: which a text is read in, and which it is written in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlxport.errors import UsageError
from mlxport.progress import listed

__all__ = ["languages_of", "reading_in", "token_of"]

# Tokens such as eng_Latn (NLLB), en_XX (mBART) and __fr__ (M2M100, whose language is called fr).
_TOKEN = re.compile(r"(?P<code>[a-z]{2,3}_[A-Z][A-Za-z]+)|__(?P<name>\w+?)__")


def languages_of(tokenizer: Any) -> dict[str, int]:
    """Names of languages, as ``src_lang`` takes them, and the tokens that stand for them; empty where it has none."""
    if not hasattr(tokenizer, "src_lang"):
        return {}
    tokens = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab(), *getattr(tokenizer, "lang_token_to_id", ())}
    found = {match["code"] or match["name"]: token for token in tokens if (match := _TOKEN.fullmatch(str(token)))}
    return {name: int(tokenizer.convert_tokens_to_ids(str(token))) for name, token in sorted(found.items())}


@contextmanager
def reading_in(tokenizer: Any, language: str | None) -> Iterator[None]:
    """Let ``tokenizer`` mark texts as of a language, None for the one that it marks them as by itself.

    Raises:
        UsageError: It does not have the language.
    """
    if language is None:
        yield
        return
    token_of(tokenizer, language, "--source-lang")
    before = tokenizer.src_lang
    tokenizer.src_lang = language
    try:
        yield
    finally:
        tokenizer.src_lang = before


def token_of(tokenizer: Any, language: str, flag: str) -> int:
    """The token that stands for a language.

    Raises:
        UsageError: The tokenizer does not have it, or no languages at all.
    """
    known = languages_of(tokenizer)
    if not known:
        raise UsageError(
            f"{flag} {language}: this tokenizer has no tokens for languages",
            hint='leave it out; T5 is told in the prompt: "translate English to German: ..."',
        )
    if language not in known:
        raise UsageError(f"{flag} {language}: no such language", hint=f"it has {listed(_nearest(known, language))}")
    return known[language]


def _nearest(known: dict[str, int], language: str) -> list[str]:
    """All languages, first those that begin alike."""
    return sorted(known, key=lambda name: (name[:2].lower() != language[:2].lower(), name))

"""Texts as tokens for a model that reads each as a whole, never more than it has positions for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mlxport.errors import TokenizerError, UsageError
from mlxport.model_config import ModelConfig
from mlxport.run.load import check_ids
from mlxport.source.tokenizer_loading import check_unicode, reason, refusing

__all__ = ["encode_texts", "longest_text"]

_NO_LIMIT = 10**9  # transformers writes 10^30 where a tokenizer knows none


def longest_text(tokenizer: Any, config: dict[str, Any]) -> int | None:
    """Tokens that a text may have, its special ones included; None where nothing says."""
    known = int(getattr(tokenizer, "model_max_length", _NO_LIMIT) or _NO_LIMIT)
    table = ModelConfig(config).context_length
    limits = [size for size in (known, table) if size is not None and size < _NO_LIMIT]
    return min(limits, default=None)


def encode_texts(
    tokenizer: Any,
    texts: Sequence[Any],
    limit: int | None,
    config: dict[str, Any],
    truncate: bool,
    beyond: Callable[[str], object] | None = None,
    **more: Any,
) -> Any:
    """A tokenizer's encoding of texts, without padding.

    Args:
        tokenizer: It.
        texts: The texts.
        limit: The most tokens of each, None for no limit.
        config: The model's.
        truncate: Whether to cut those that have more.
        beyond: Called with a warning of each that has more, where the model can read them; None refuses them.
        **more: For the tokenizer.

    Raises:
        UsageError: An input is no text, is empty, not valid Unicode, or longer than the model reads.
        TokenizerError: The tokenizer fails, or knows tokens that the model does not.
    """
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(f"expected a text, got {type(text).__name__}", hint="give a string")
        if not text.strip():
            raise UsageError("a text is empty", hint="give one that says something")
        check_unicode(text)

    def failed(error: BaseException) -> TokenizerError:
        return TokenizerError(f"the tokenizer fails on the text: {reason(error)}", hint="give another text")

    with refusing(failed):
        # Not verbose: what transformers would warn of is refused or said below.
        made = tokenizer(list(texts), truncation=truncate, max_length=limit, verbose=False, **more)
    for text, ids in zip(texts, made["input_ids"], strict=True):
        if limit is not None and len(ids) > limit:
            said = f"a text has {len(ids)} tokens, and this model"
            if beyond is None:
                raise UsageError(
                    f"{said} reads at most {limit}: {text[:60]!r} …",
                    hint="shorten it, or add --truncate to leave out the rest",
                )
            beyond(f"{said} was made for {limit}: expect a poor answer, or add --truncate to leave out the rest")
        check_ids(ids, config)
    return made

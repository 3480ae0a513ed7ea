"""Windows of token ids, made from the text that quality is measured on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mlxport.errors import TokenizerError, UsageError
from mlxport.model import texts
from mlxport.model import tokens as token_ids

__all__ = ["LEAST_TOKENS", "load_tokenizer", "read_text", "token_windows"]

LEAST_TOKENS = 32  # predicted ones; figures of fewer say nothing
_MOST_BYTES = 1 << 26  # of a file: more would not be measured
_LONGEST = 64  # characters of a token, more than nearly all have: what lies beyond is not worth cutting into tokens


def read_text(path: str | Path) -> str:
    """The text of a file.

    Raises:
        UsageError: It cannot be read, is empty, or is not text in UTF-8.
    """
    hint = "give a file of plain text in UTF-8, or leave --text out for the built-in text"
    return texts.read_text(path, f"--text {path}", hint, _MOST_BYTES)


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model's folder.

    Raises:
        TokenizerError: It has none that loads.
    """

    def refusal(error: BaseException) -> TokenizerError:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        return TokenizerError(
            f"{folder} has no tokenizer that loads, so no text can be given to the model ({first})",
            hint="copy tokenizer.json and tokenizer_config.json of the original into it",
        )

    return token_ids.load_tokenizer(folder, refusal, trust_remote_code=trust_remote_code)


def token_windows(
    folder: Path,
    text: str,
    *,
    vocabulary: int,
    tokens: int = 4096,
    window: int = 512,
    trust_remote_code: bool = False,
) -> tuple[list[np.ndarray[Any, Any]], tuple[str, ...]]:
    """A text cut into sequences of token ids that do not overlap, each after the token that texts begin with.

    Args:
        folder: Where the tokenizer lies.
        text: The text.
        vocabulary: Rows of the embedding; ids beyond are left out.
        tokens: The text is cut after so many tokens.
        window: Tokens of a sequence, the beginning one included.
        trust_remote_code: Whether a tokenizer may run code of the folder.

    Returns:
        int64 sequences of 2 to ``window`` ids, and remarks.

    Raises:
        TokenizerError: No tokenizer that loads.
        UsageError: The text makes too few tokens.
    """
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    made = [int(i) for i in tokenizer(text[: _LONGEST * tokens], verbose=False)["input_ids"]]
    begin = made[:1] if made and made[0] == tokenizer.bos_token_id else []
    made = made[len(begin) :]
    if made and made[-1] == tokenizer.eos_token_id:
        made = made[:-1]  # some tokenizers end each text
    ids, notes = token_ids.within(made, vocabulary)
    if len(ids) <= LEAST_TOKENS:
        raise UsageError(
            f"the text makes {len(ids)} tokens, and figures of fewer than {LEAST_TOKENS + 1} would say nothing",
            hint="give a longer text with --text FILE",
        )
    ids, step = ids[:tokens], window - len(begin)
    pieces = [begin + ids[start : start + step] for start in range(0, len(ids), step)]
    return [np.asarray(piece, dtype=np.int64) for piece in pieces if len(piece) > 1], notes

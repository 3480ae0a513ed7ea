"""Text as it is generated: exactly what ``tokenizer.decode`` gives of all tokens, in pieces that are never taken back.

A text is not the sum of its tokens: a character may be split over several, byte tokens of SentencePiece are characters
only once their run has ended well, transformers' clean-up takes out spaces before what comes next, and some decoders
drop the first space of a text and no other. So a piece is given out once no later token can change it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["StreamedText"]

# One token of SentencePiece's byte fallback. A run of them that is not UTF-8 becomes as many replacement characters.
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# From a space on, the characters with which transformers' clean-up patterns (" .", " ' ", " n't", " 've") may go on.
_MAY_BE_CLEANED = re.compile(r" [ .?!,'nvr]*\Z")
_REPLACEMENT = "\ufffd"
# Tokens after which the beginning of what is decoded each time moves on, so that a long text costs no more per token.
_WINDOW = 16
# What the window is tried on: clean-up, split characters, a broken one, spaces in a row.
_TRIAL = "   ab  ,c .\n do n't ' x ' . 🙂é 깰 <n> \ufffd don't, we 've \"q\" (r) s_t-u  \n\tend."


class StreamedText:
    """The text of a growing sequence of tokens; takes the place of mlx-lm's streaming detokenizers.

    Args:
        tokenizer: Of transformers.
        skip_special: Whether special tokens are left out of the text.

    Attributes:
        tokens: Token ids so far.
        text: Their text, as far as it is certain; after ``finalize`` what ``decode(tokens)`` gives.
        offset: Length of the text that ``last_segment`` has given out.
    """

    def __init__(self, tokenizer: Any, *, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skipping = {"skip_special_tokens": True} if skip_special else {}
        trial = _trial_tokens(tokenizer)
        self._cleans = _cleans(tokenizer, trial)
        self._cleaned: Callable[[str], str] = tokenizer.clean_up_tokenization if self._cleans else str
        self._by_window = True
        self._by_window = self._agrees(trial)
        self.reset()

    def decode(self, tokens: Sequence[int], **options: Any) -> str:
        """The text of these tokens, by ``tokenizer.decode`` with these options."""
        return str(self._tokenizer.decode(tokens, **self._skipping, **options))

    def reset(self) -> None:
        """Begin another text."""
        self.tokens: list[int] = []
        self.text = ""
        self.offset = 0
        # The window: tokens from `_start` are decoded each time, of which those before `_settled` are only its context.
        self._start = self._settled = 0
        self._settled_text = ""
        self._context = 0

    def add_token(self, token: int) -> None:
        """Take one more token."""
        self.tokens.append(int(token))
        if not self._by_window:
            return
        window = self._raw(self.tokens[self._start :])
        sure = self._certain(window)
        self.text = self._settled_text + self._cleaned(window[:sure])[self._context :]
        if sure == len(window) and len(self.tokens) - self._settled >= _WINDOW and window[-1:].strip():
            self._start, self._settled = self._settled, len(self.tokens)
            self._settled_text = self.text
            self._context = len(self._cleaned(self._raw(self.tokens[self._start :])))

    def finalize(self) -> None:
        """Take the end: all that was held back is certain now."""
        self.text = self.decode(self.tokens)

    @property
    def last_segment(self) -> str:
        """What has become certain since the last time."""
        segment = self.text[self.offset :]
        self.offset = len(self.text)
        return segment

    def _raw(self, tokens: Sequence[int]) -> str:
        """The text of these tokens before spaces are cleaned up."""
        if self._cleans:
            return self.decode(tokens, clean_up_tokenization_spaces=False)
        return self.decode(tokens)

    def _certain(self, window: str) -> int:
        """Length of the decoded window that no token after it changes."""
        run = 0
        while run < len(self.tokens) - self._start and self._is_byte(self.tokens[-1 - run]):
            run += 1
        if run:
            window = self._raw(self.tokens[self._start : len(self.tokens) - run])
        window = window.rstrip(_REPLACEMENT)
        if self._cleans and (tail := _MAY_BE_CLEANED.search(window)) is not None:
            return tail.start()
        return len(window)

    def _is_byte(self, token: int) -> bool:
        name = self._tokenizer.convert_ids_to_tokens(token)
        return isinstance(name, str) and _BYTE_TOKEN.fullmatch(name) is not None

    def _agrees(self, trial: Sequence[int]) -> bool:
        """Whether windows give what decoding the trial at once does; where they do not, all text waits for the end."""
        try:
            whole = self.decode(trial)
            self.reset()
            for token in trial:
                self.add_token(token)
                if not whole.startswith(self.text):
                    return False
        except Exception:  # a class of its own, whose decode is another: the plain call at the end shall do
            return False
        return True


def _trial_tokens(tokenizer: Any) -> list[int]:
    """Tokens of the trial text, or the first of the vocabulary where it cannot write that text."""
    try:
        return [int(i) for i in tokenizer.encode(_TRIAL, add_special_tokens=False)]
    except Exception:  # the tokenizers library raises plain ones, for a vocabulary without an unknown token
        return [*range(min(len(tokenizer), len(_TRIAL)))]


def _cleans(tokenizer: Any, trial: Sequence[int]) -> bool:
    """Whether decoding cleans up spaces: transformers 5 does not for BPE, whatever the setting says."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    try:
        raw = str(tokenizer.decode(trial, clean_up_tokenization_spaces=False))
        cleaned = str(tokenizer.clean_up_tokenization(raw))
        return cleaned == raw or str(tokenizer.decode(trial)) == cleaned
    except Exception:  # as above
        return False

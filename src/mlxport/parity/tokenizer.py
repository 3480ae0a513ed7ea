"""The tokenizer's round trip: source against output, and both against the embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlxport.errors import ConfigError, TokenizerError
from mlxport.model.texts import PROBE_TEXT, TRICKY_TEXT
from mlxport.types import Checkpoint

__all__ = ["TokenizerReport", "check_tokenizer"]

_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tokenizer_config.json")
_HINT = "copy the tokenizer files of the original model beside its config.json"
_CHAT = ({"role": "user", "content": "Hello, how are you?"},)


@dataclass(frozen=True)
class TokenizerReport:
    """What was found; everything that would be wrong raised instead.

    Attributes:
        size: Number of tokens that the tokenizer knows.
        rows: Rows of the embedding, None if unknown.
        tokens: Tokens that the test text became.
        lossless: Whether decoding gives the text back (a normalising tokenizer need not).
        chat_template: Whether there is one, and it renders the same from both folders.
        notes: Remarks that do not make the output wrong.
    """

    size: int
    rows: int | None
    tokens: int
    lossless: bool
    chat_template: bool
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return {**asdict(self), "notes": list(self.notes)}

    def summary(self) -> str:
        """One line for a terminal."""
        trip = "lossless" if self.lossless else "normalises text, as the original does"
        chat = "chat template equal" if self.chat_template else "no chat template"
        return f"tokenizer: {self.size} tokens, embedding {self.rows} rows, round trip equal ({trip}), {chat}"


def _load(folder: Path, trust: bool) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoTokenizer

    # Without files some classes build an empty tokenizer instead of failing.
    if not any(True for pattern in _VOCABULARIES for _ in folder.glob(pattern)):
        raise TokenizerError(f"{folder} has no tokenizer (looked for {', '.join(_VOCABULARIES)})", hint=_HINT)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
    except StrictDataclassError as error:
        message = f"{folder / 'config.json'}: {' '.join(str(error).split())[:300]}"
        raise ConfigError(message, hint="get config.json again from where the weights are from") from error
    except Exception as error:  # third-party parsers on a user's files: whatever they raise is about that input
        message = f"the tokenizer in {folder} does not load: {type(error).__name__}: {str(error).splitlines()[0][:300]}"
        raise TokenizerError(message, hint=_HINT) from error


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def _same(what: str, source: Any, output: Any) -> None:
    if source != output:
        raise TokenizerError(
            f"the tokenizer of the output differs from the source's: {what} {output!r:.200}, expected {source!r:.200}",
            hint="convert again; files beside the weights were changed",
        )


def _check_ids(tokenizer: Any, ids: Sequence[int], rows: int | None, source: str) -> list[str]:
    """Every id that a text gives must have a row in the embedding; notes on added tokens, which it need not hold.

    transformers adds special tokens of its own to some classes (qwen2), which a small vocabulary has no rows for.
    """
    if rows is None:
        return []
    largest = max([*ids, int(tokenizer.vocab_size) - 1], default=-1)
    if largest >= rows:
        raise TokenizerError(
            f"the tokenizer in {source} is for another vocabulary: ids up to {largest}, the embedding has {rows} rows",
            hint=_HINT,
        )
    if len(tokenizer) > rows:
        beyond = [token for token, i in tokenizer.get_added_vocab().items() if i >= rows]
        return [f"added tokens without a row in the embedding: {', '.join(sorted(beyond)[:4])}"]
    return []


def _template(tokenizer: Any) -> str | None:
    """A rendered conversation, None without a template; a template that refuses it gives its complaint."""
    if getattr(tokenizer, "chat_template", None) is None:
        return None
    from jinja2.exceptions import TemplateError

    try:
        return str(tokenizer.apply_chat_template(list(_CHAT), tokenize=False, add_generation_prompt=True))
    except (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        return f"{type(error).__name__}: {error}"


def _streamed(folder: Path, ids: Sequence[int], trust: bool) -> tuple[list[int], str]:
    """Ids and text as mlx-lm makes them, the text token by token."""
    from mlx_lm.tokenizer_utils import load

    wrapper = load(folder, {"trust_remote_code": trust, "local_files_only": True})
    detokenizer = wrapper.detokenizer
    detokenizer.reset()
    for token in ids:
        detokenizer.add_token(int(token))
    detokenizer.finalize()
    return [int(i) for i in wrapper.encode(TRICKY_TEXT)], str(detokenizer.text)


def _embedding_rows(checkpoint: Checkpoint) -> int | None:
    from mlxport.source.tokenizer_files import embedding_rows

    return embedding_rows(checkpoint.config, {name: ref.shape for name, ref in checkpoint.tensors.items()})


def check_tokenizer(folder: Path, checkpoint: Checkpoint) -> TokenizerReport:
    """Encode and decode a text of several scripts, emoji and whitespace with both tokenizers.

    Args:
        folder: The output.
        checkpoint: The original.

    Raises:
        TokenizerError: None is there, it does not load, it is for another vocabulary, or the output's differs.
    """
    trust = checkpoint.trust_remote_code
    source, output = _load(checkpoint.root, trust), _load(Path(folder), trust)
    rows = _embedding_rows(checkpoint)
    ids: list[int] = []
    for text in (TRICKY_TEXT, PROBE_TEXT):
        ids = [int(i) for i in source.encode(text)]
        _same(f"of {text[:30]!r} it makes", ids, [int(i) for i in output.encode(text)])
        _same("it decodes to", _decode(source, ids), _decode(output, ids))
    notes = _check_ids(output, ids, rows, checkpoint.location)
    ids = [int(i) for i in source.encode(TRICKY_TEXT, add_special_tokens=False)]
    _same("its special tokens are", source.special_tokens_map, output.special_tokens_map)
    rendered = _template(source)
    _same("its chat template gives", rendered, _template(output))
    encoded, streamed = _streamed(Path(folder), ids, trust)
    _same("mlx-lm makes", [int(i) for i in source.encode(TRICKY_TEXT)], encoded)
    decoded = _decode(source, ids)
    if streamed.lstrip(" ") != decoded.lstrip(" "):
        notes.append("mlx-lm's streaming detokenizer gives another text than decoding at once")
    return TokenizerReport(len(output), rows, len(ids), decoded == TRICKY_TEXT, rendered is not None, tuple(notes))

"""The tokenizer's round trip: source against output, and both against the embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlxport.errors import MlxportError, SourceError, TokenizerError
from mlxport.model.texts import PROBE_TEXT, TRICKY_TEXT
from mlxport.source.jsonfile import read_object
from mlxport.source.tokenizer_loading import (
    check_decoder,
    encoded,
    load_tokenizer,
    reason,
    refusing,
    rendered,
    words_come_back,
)
from mlxport.types import Checkpoint

__all__ = ["TokenizerReport", "check_tokenizer"]

_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tokenizer_config.json")
_HINT = "copy the tokenizer files of the original model beside its config.json"
_NONE = (None, None)
_Encoded = tuple[list[int], str | None]
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
    # Without files some classes build an empty tokenizer instead of failing.
    if not any(True for pattern in _VOCABULARIES for _ in folder.glob(pattern)):
        raise TokenizerError(f"{folder} has no tokenizer (looked for {', '.join(_VOCABULARIES)})", hint=_HINT)
    return load_tokenizer(folder, trust_remote_code=trust)


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def _same(what: str, source: Any, output: Any, why: tuple[str, str]) -> None:
    if source != output:
        cause, hint = why
        raise TokenizerError(
            f"the tokenizer of the output differs from the source's: {what} {output!r:.200}, "
            f"expected {source!r:.200}{cause}",
            hint=hint,
        )


def _cause(source: Any, output: Any, folder: Path, original: Mapping[str, Any]) -> tuple[str, str]:
    """Why two tokenizers from the same files may differ, for the end of an error, and what to do."""
    kinds = original.get("model_type"), read_object(folder / "config.json", SourceError, unique=False).get("model_type")
    classes = type(source).__name__, type(output).__name__
    if kinds[0] == kinds[1] or classes[0] == classes[1]:
        return "", "convert again; files beside the weights were changed"
    return (
        f": mlx-lm runs {kinds[0]} as {kinds[1]}, whose tokenizer is of class {classes[1]} for transformers, "
        f"and the source's is a {classes[0]}",
        f'if a {classes[1]} is right for this model, set "tokenizer_class": "{classes[1]}" in the source\'s '
        "tokenizer_config.json",
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


def _encoded(tokenizer: Any, text: str, **options: Any) -> _Encoded:
    """The ids of a text and None; of a vocabulary that cannot write it, none and the complaint."""
    try:
        return encoded(tokenizer, text, **options), None
    except TokenizerError as error:
        return [], error.message


def _template(tokenizer: Any) -> tuple[str | None, str | None]:
    """A rendered conversation and None; of a template that fails, None and the complaint; without one, twice None."""
    if getattr(tokenizer, "chat_template", None) is None:
        return _NONE
    try:
        return rendered(tokenizer, _CHAT), None
    except MlxportError as error:
        return None, error.message


def _streamed(folder: Path, ids: Sequence[int], trust: bool) -> tuple[_Encoded, str]:
    """Ids and text as mlx-lm makes them, the text token by token."""
    from mlx_lm.tokenizer_utils import load

    def refusal(error: BaseException) -> TokenizerError:
        return TokenizerError(f"mlx-lm cannot use the tokenizer in {folder}: {reason(error)}", hint=_HINT)

    with refusing(refusal):
        wrapper = load(folder, {"trust_remote_code": trust, "local_files_only": True})
        detokenizer = wrapper.detokenizer
        detokenizer.reset()
        for token in ids:
            detokenizer.add_token(int(token))
        detokenizer.finalize()
        return _encoded(wrapper, TRICKY_TEXT), str(detokenizer.text)


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
    same = partial(_same, why=_cause(source, output, Path(folder), checkpoint.config))
    rows = _embedding_rows(checkpoint)
    back = check_decoder(source, checkpoint.root)
    ids: list[int] = []
    for text in (TRICKY_TEXT, PROBE_TEXT):
        ids, complaint = _encoded(source, text)
        same(f"of {text[:30]!r} it makes", (ids, complaint), _encoded(output, text))
        same("it decodes to", _decode(source, ids), _decode(output, ids))
    notes = _check_ids(output, ids, rows, checkpoint.location)
    ids, complaint = _encoded(source, TRICKY_TEXT, add_special_tokens=False)
    same("its special tokens are", source.special_tokens_map, output.special_tokens_map)
    template = _template(source)
    same("its chat template gives", template, _template(output))
    made, streamed = _streamed(Path(folder), ids, trust)
    same("mlx-lm makes", _encoded(source, TRICKY_TEXT), made)
    decoded = _decode(source, ids)
    if streamed.lstrip(" ") != decoded.lstrip(" "):
        notes.append("mlx-lm's streaming detokenizer gives another text than decoding at once")
    if complaint is not None:
        notes.append(complaint)
    elif back is not None and not words_come_back(back):
        notes.append(f"decoding does not give back the words of a text, in the original as here: {back[:80]!r}")
    if template[1] is not None:
        notes.append(f"chat will not work: {template[1]}")
    return TokenizerReport(len(output), rows, len(ids), decoded == TRICKY_TEXT, template != _NONE, tuple(notes))

"""The tokenizer in a GGUF file's metadata, as the files that transformers reads; transformers' own builders make it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxport.errors import TokenizerError, UnsupportedError
from mlxport.source.gguf.header import ORIGINAL, GgufHeader
from mlxport.source.tokenizer_loading import reason, refusing

__all__ = ["write_tokenizer"]

_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_HINT = f"{ORIGINAL}, whose tokenizer is a file"


def write_tokenizer(header: GgufHeader, folder: Path) -> list[Path]:
    """Write tokenizer.json and tokenizer_config.json into ``folder``; their paths, none where a file has no tokens.

    Raises:
        UnsupportedError: A kind of tokenizer that transformers does not build, or a transformers without builders.
        TokenizerError: The metadata contradict each other.
    """
    metadata = header.metadata
    if not isinstance(metadata.get("tokenizer.ggml.tokens"), list):
        return []
    settings = _settings(header)
    try:
        from transformers import PreTrainedTokenizerFast
        from transformers.integrations.gguf.gguf_tokenizer_mapping import (
            GGUF_TOKENIZER_MAPPING,
            GGUF_TOKENIZER_TYPES,
            convert_gguf_tokenizer,
        )
    except ImportError as error:
        raise UnsupportedError(
            f"{header.path}: this transformers builds no tokenizers of GGUF: {error}",
            hint="pip install --upgrade transformers",
        ) from error
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in GGUF_TOKENIZER_TYPES:
        raise UnsupportedError(
            f"{header.path}: its tokenizer is of the kind {str(kind)[:80]!r}; read are "
            f"{', '.join(GGUF_TOKENIZER_TYPES)}",
            hint=_HINT,
        )
    renames = GGUF_TOKENIZER_MAPPING["tokenizer"]
    given = {name: metadata[f"tokenizer.{key}"] for key, name in renames.items() if f"tokenizer.{key}" in metadata}

    def refusal(error: BaseException) -> TokenizerError:
        return TokenizerError(f"{header.path}: no tokenizer can be made of its metadata: {reason(error)}", hint=_HINT)

    with refusing(refusal):
        backend, _ = convert_gguf_tokenizer(header.architecture, given)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **settings)
    _add_first_and_last(tokenizer, settings)
    # Classes of transformers add tokens of their own, which the model has no rows for.
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    known = len(metadata["tokenizer.ggml.tokens"])
    made["added_tokens"] = [token for token in made["added_tokens"] if token["id"] < known]
    (folder / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return [folder / "tokenizer.json", folder / "tokenizer_config.json"]


def _settings(header: GgufHeader) -> dict[str, Any]:
    """What tokenizer_config.json says: special tokens, which are added to a text, the template of chats."""
    metadata, found = header.metadata, dict[str, Any]()
    tokens = metadata["tokenizer.ggml.tokens"]
    for name, key in _SPECIAL.items():
        number = metadata.get(f"tokenizer.ggml.{key}")
        if number is None:
            continue
        if type(number) is not int or not 0 <= number < len(tokens):
            raise TokenizerError(
                f"{header.path}: tokenizer.ggml.{key} is {number!r}, and it has {len(tokens)} tokens", hint=_HINT
            )
        found[name] = tokens[number]
    if isinstance(template := metadata.get("tokenizer.chat_template"), str):
        found["chat_template"] = template
    # Old files do not say; llama.cpp begins texts of a sentencepiece vocabulary with the first token then.
    first = metadata.get("tokenizer.ggml.add_bos_token", metadata.get("tokenizer.ggml.model") == "llama")
    found["add_bos_token"] = bool(first)
    found["add_eos_token"] = bool(metadata.get("tokenizer.ggml.add_eos_token", False))
    return found


def _add_first_and_last(tokenizer: Any, settings: Mapping[str, Any]) -> None:
    """Let tokenizer.json itself add the tokens that begin and end a text."""
    from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing

    parts, special = ["$A"], []
    for name, place in (("bos_token", 0), ("eos_token", 1)):
        token = settings.get(name)
        if settings[f"add_{name}"] and token is not None:
            parts = [token, *parts] if place == 0 else [*parts, token]
            special.append((token, tokenizer.convert_tokens_to_ids(token)))
    template = TemplateProcessing(single=" ".join(parts), special_tokens=special) if special else None
    byte_level = (
        ByteLevel(trim_offsets=False) if type(tokenizer.backend_tokenizer.decoder).__name__ == "ByteLevel" else None
    )
    steps = [step for step in (byte_level, template) if step is not None]
    if steps:
        tokenizer.backend_tokenizer.post_processor = steps[0] if len(steps) == 1 else Sequence(steps)

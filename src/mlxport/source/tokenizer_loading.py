"""Others' code on a user's tokenizer: load it, encode, decode, render its template; whatever goes wrong is one error.

transformers, tokenizers and jinja raise anything on files that they do not expect, MemoryError and Rust's panics too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxport.errors import ConfigError, MlxportError, TokenizerError, UsageError
from mlxport.printable import words
from mlxport.source.bounded_rendering import EndlessTemplate, bounded
from mlxport.source.jsonfile import read_object
from mlxport.source.tiktoken_tokenizer import made_tokenizer

__all__ = [
    "check_decoder",
    "check_settings",
    "check_unicode",
    "checked_ends",
    "encoded",
    "load_tokenizer",
    "reason",
    "refusing",
    "rendered",
    "words_come_back",
]

_HINT = "copy the tokenizer files of the original model beside its config.json"
_SETTINGS_FILE = "tokenizer_config.json"
# What others' code fails on in its own words: the types that a setting may have where it is not null.
_SETTINGS: Mapping[str, tuple[type, ...]] = {
    "tokenizer_class": (str,),
    "tool_parser_type": (str,),
    "chat_template_type": (str,),
    "chat_template": (str, list, dict),
    "model_max_length": (int, float),
    "added_tokens_decoder": (dict,),
    "auto_map": (dict, list),
    "extra_special_tokens": (list, dict),
    "additional_special_tokens": (list,),
    **{f"{name}_token": (str, dict) for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")},
}
_WORDS: Mapping[type, str] = {str: "a string", list: "a list", dict: "an object", int: "a number", float: "a number"}
# Modules of mlx-lm that a setting names.
_MODULES = {"tool_parser_type": "tool_parsers", "chat_template_type": "chat_templates"}
# Characters that a template may write of its own, and times that it may repeat the messages.
_MOST_WRITTEN, _MOST_TIMES = 1_000_000, 20
_TEXT = "Hello, you and I wrote 12 words: café, naïve."
_BYTE_LEVEL = '{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}'
# What tokens of each kind of vocabulary carry, and the decoder that takes it away again.
_MARKS: Mapping[str, str] = {
    "Ġ": _BYTE_LEVEL,
    "Ã": _BYTE_LEVEL,
    "▁": '{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}',
    "##": '{"type": "WordPiece", "prefix": "##", "cleanup": true}',
    "</w>": '{"type": "BPEDecoder", "suffix": "</w>"}',
}


def reason(error: BaseException) -> str:
    """What an exception of others says, in one line."""
    lines = words(error).strip().splitlines()
    said = lines[0] if lines and len(lines[0]) <= 300 else f"{lines[0][:300]} …" if lines else ""
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


@contextlib.contextmanager
def refusing(refusal: Callable[[BaseException], MlxportError]) -> Iterator[None]:
    """Turn whatever others' code raises in here into one error of ours.

    Args:
        refusal: Makes the error of what was raised.
    """
    try:
        yield
    except (MlxportError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        raise refusal(error) from error


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of transformers in a folder; what is code of a checkpoint and known here, as we write it.

    Raises:
        TokenizerError: It does not load.
        ConfigError: config.json, which transformers reads with it, is refused.
    """
    from transformers import AutoTokenizer

    check_settings(folder)

    def refusal(error: BaseException) -> MlxportError:
        from huggingface_hub.errors import StrictDataclassError

        if isinstance(error, StrictDataclassError):
            message = f"{folder / 'config.json'}: {' '.join(str(error).split())[:300]}"
            return ConfigError(message, hint="get config.json again from where the weights are from")
        return TokenizerError(f"the tokenizer in {folder} does not load: {reason(error)}", hint=_HINT)

    with refusing(refusal):
        if (made := made_tokenizer(folder)) is not None:
            return made.load()
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)


def check_settings(folder: Path) -> None:
    """Check the settings in tokenizer_config.json that others' code would fail on without naming them.

    Raises:
        TokenizerError: One is of another type, or names a module that mlx-lm does not have.
    """
    path = folder / _SETTINGS_FILE
    if not path.is_file():
        return
    settings = read_object(path, TokenizerError, unique=False)
    for name, types in _SETTINGS.items():
        value = settings.get(name)
        if value is not None and (not isinstance(value, types) or isinstance(value, bool)):
            expected = " or ".join(dict.fromkeys(_WORDS[kind] for kind in types))
            raise TokenizerError(f"{path}: {name} is {value!r:.80}, expected {expected}", hint=_HINT)
    _check_templates(path, settings.get("chat_template"))
    for name, package in _MODULES.items():
        _check_module(path, name, settings.get(name), package)


def _check_templates(path: Path, templates: Any) -> None:
    """Several templates are a list of names and templates, or a map of them."""
    entries: list[tuple[Any, Any]] = []
    if isinstance(templates, dict):
        entries = [*templates.items()]
    elif isinstance(templates, list):
        entries = [
            (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, entry)
            for entry in templates
        ]
    for name, template in entries:
        if not isinstance(name, str) or not isinstance(template, str):
            found = f"{path}: chat_template holds {template!r:.80} under the name {name!r:.40}"
            raise TokenizerError(f"{found}, expected a name and a template", hint=_HINT)


def _check_module(path: Path, setting: str, name: Any, package: str) -> None:
    if name is None:
        return
    spec = importlib.util.find_spec(f"mlx_lm.{package}")
    known = sorted(module.name for module in pkgutil.iter_modules(spec.submodule_search_locations if spec else None))
    if name not in known:
        raise TokenizerError(
            f"{path}: {setting} is {name!r:.80}, and mlx-lm has only {', '.join(known)}",
            hint=f"take {setting} out of the file, or pip install -U mlx-lm",
        )


def checked_ends(given: Any, place: str) -> list[int] | None:
    """Ids that end a text, None where the model says nothing of them.

    Args:
        given: ``eos_token_id`` of a config.
        place: The file, for the error.

    Raises:
        ConfigError: It is neither an id nor a list of ids.
    """
    ends = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(end, int) and not isinstance(end, bool) for end in ends):
        found = f"{place}: eos_token_id is {given!r:.80}, expected a token id or a list of them"
        raise ConfigError(found, hint="put the id of the token that ends a text there, or take it out")
    return ends or None


def check_unicode(text: str) -> None:
    """Refuse a text that no tokenizer can read.

    Raises:
        UsageError: It is not valid Unicode.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = (
            f"the text for the model is not valid Unicode: {ascii(text[max(error.start - 20, 0) : error.start + 20])}"
        )
        raise UsageError(found, hint="give prompt and system prompt in UTF-8") from error


def encoded(tokenizer: Any, text: str, **options: Any) -> list[int]:
    """Token ids of a text, by ``tokenizer.encode`` with these options.

    Raises:
        UsageError: The text is not valid Unicode.
        TokenizerError: The tokenizer raises.
    """
    check_unicode(text)

    def refusal(error: BaseException) -> TokenizerError:
        return TokenizerError(f"the tokenizer cannot encode {text[:40]!r}: {reason(error)}", hint=_HINT)

    with refusing(refusal):
        # Not verbose: transformers would say that long texts give indexing errors, which is not so of these models.
        return [int(token) for token in tokenizer.encode(text, verbose=False, **options)]


def rendered(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation as the tokenizer's chat template writes it, ready for the answer.

    Raises:
        UsageError: The template refuses these messages (some know no system prompt).
        TokenizerError: It does not work, or there are several and none is the default.
    """
    from jinja2 import TemplateError, TemplateSyntaxError

    raw = "pass --ignore-chat-template to mlxport generate"
    templates = getattr(tokenizer, "chat_template", None)
    if isinstance(templates, dict) and "default" not in templates:
        found = f"the tokenizer has chat templates by name ({', '.join(sorted(templates))}) and none named default"
        hint = f"put the one to use into chat_template.jinja of the model's folder, or {raw}"
        raise TokenizerError(found[:300], hint=hint)

    def refusal(error: BaseException) -> MlxportError:
        if isinstance(error, TemplateError) and not isinstance(error, TemplateSyntaxError):
            hint = f"leave out --system-prompt, or {raw}" if messages[0]["role"] == "system" else raw
            return UsageError(f"the model's chat template refuses the messages: {str(error)[:300]}", hint=hint)
        hint = f"mend the template in the model's folder, or {raw}"
        why = str(error) if isinstance(error, EndlessTemplate) else reason(error)
        return TokenizerError(f"the model's chat template fails: {why}", hint=hint)

    with refusing(refusal), bounded():
        text = str(tokenizer.apply_chat_template([*messages], tokenize=False, add_generation_prompt=True))
        _check_length(text, messages)
    return text


def _check_length(text: str, messages: Sequence[Mapping[str, str]]) -> None:
    """Refuse what a template makes of messages that are far shorter: a tokenizer would work on it for hours."""
    most = _MOST_WRITTEN + _MOST_TIMES * sum(len(message["content"]) for message in messages)
    if len(text) > most:
        raise EndlessTemplate(f"it writes {len(text):,} characters, expected at most {most:,}")


def check_decoder(tokenizer: Any, place: Path) -> str | None:
    """What comes back of a text that was encoded, by its decoder; None where the vocabulary cannot write that text.

    Args:
        tokenizer: Of transformers.
        place: Its folder, for the error.

    Raises:
        TokenizerError: It has marks of the vocabulary in it, because the decoder is for another kind of vocabulary.
    """
    try:
        ids = encoded(tokenizer, _TEXT, add_special_tokens=False)
    except TokenizerError:
        return None
    with refusing(lambda error: TokenizerError(f"{place}: the tokenizer cannot decode: {reason(error)}", hint=_HINT)):
        decoded = str(tokenizer.decode(ids))
    for mark, decoder in _MARKS.items():
        if mark in decoded:
            raise TokenizerError(
                f"the tokenizer in {place} does not give back its own text: {_TEXT!r} comes back as {decoded[:120]!r}: "
                "its decoder is for another kind of vocabulary",
                hint=f'set "decoder": {decoder} in its tokenizer.json',
            )
    return decoded


def words_come_back(decoded: str) -> bool:
    """Whether what ``check_decoder`` returned has the words of its text, in whatever case and spacing around marks."""

    def words(text: str) -> list[str]:
        return re.findall(r"[a-z0-9]+", text.lower())

    return words(decoded)[:7] == words(_TEXT)[:7]

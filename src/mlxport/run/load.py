"""Open a converted folder (or a repository that holds one) for use, and refuse what mlx-lm would run wrong."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxport.errors import (
    ConfigError,
    MlxportError,
    SourceError,
    TokenizerError,
    UnsafeError,
    UnsupportedError,
    UsageError,
    WeightsError,
)
from mlxport.model_config import ModelConfig
from mlxport.output.surroundings import check_surroundings
from mlxport.run.detokenizer import StreamedText
from mlxport.run.kv import KVQuant, recorded_kv
from mlxport.source.tokenizer_loading import check_decoder, check_settings, checked_ends, reason, refusing

__all__ = [
    "LoadedModel",
    "check_ids",
    "in_mlx_files",
    "is_mlx_format",
    "load",
    "load_model",
    "refuse_encoder",
    "resolve",
]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# What mlx_lm.load fetches of a repository.
_HUB_FILES = [
    "*.json",
    "model*.safetensors",
    "weights.*",
    "*.py",
    "tokenizer.model",
    "*.tiktoken",
    "*.txt",
    "*.jsonl",
    "*.jinja",
]
_SPEECH = ("weights.safetensors", "weights.npz")  # what mlx-whisper loads
_CONVERT = "convert it first: mlxport convert {source} {target}"


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to generate.

    Attributes:
        path: Local folder.
        config: Its configuration as mlx-lm reads it (``eos_token_id`` of generation_config.json wins).
        model: The mlx-lm module.
        tokenizer: mlx-lm's wrapper of the transformers tokenizer, with a detokenizer that gives what ``decode`` does.
        kv: The quantized cache that the folder's record asks for, None for a plain one.
    """

    path: Path
    config: dict[str, Any]
    model: Any
    tokenizer: Any
    kv: KVQuant | None = None

    def decode(self, tokens: Sequence[int]) -> str:
        """The text that was generated as these tokens, as it is streamed."""
        return str(self.tokenizer.detokenizer.decode(list(tokens)))

    @property
    def context_length(self) -> int | None:
        """Longest sequence that the model was made for, where its config says so."""
        return ModelConfig(self.config).context_length


def load(path: str | os.PathLike[str], *, trust_remote_code: bool = False) -> LoadedModel:
    """Load model and tokenizer of a folder that mlxport or mlx-lm wrote, or of such a repository on the hub.

    Raises:
        SourceError: No such folder, not a model, or a checkpoint that has not been converted.
        UnsupportedError: mlx-lm does not know the architecture.
        UnsafeError: The folder carries code and ``trust_remote_code`` is not given.
    """
    check_surroundings(os.fspath(path))
    folder = resolve(path)
    model, config = load_model(folder, trust_remote_code=trust_remote_code)
    tokenizer = _load_tokenizer(folder, config, trust_remote_code, skip_special=hasattr(model, "encode"))
    return LoadedModel(folder, config, model, tokenizer, recorded_kv(folder))


def resolve(path: str | os.PathLike[str]) -> Path:
    """Return the local folder of `path`, fetched from the hub where it is a repository id; refuse unconverted ones."""
    text = os.fspath(path)
    folder = Path(text).expanduser()
    if os.path.isdir(folder):  # unlike Path.is_dir no error for a name that is too long
        _check(folder, text)
        return folder
    if os.path.exists(folder):
        hint = "give the folder that mlxport convert or mlxport port wrote"
        raise SourceError(f"{text} is a file, expected the folder of a model", hint=hint)
    if not _HUB_ID.fullmatch(text):
        hint = "check the path; mlxport convert SOURCE DESTINATION makes one"
        raise SourceError(f"{text[:200]!r}: no such folder", hint=hint)
    folder = _fetch(text)
    _check(folder, text)
    return folder


def _fetch(repo_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hint = "check the spelling and the network; a gated or private repository needs: hf auth login"
    try:
        return Path(snapshot_download(repo_id, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(
            f"{repo_id[:200]}: no such folder, and not fetched from the hub ({first})", hint=hint
        ) from error


def _check(folder: Path, shown: str) -> None:
    """Refuse folders whose weights or config are still those of PyTorch.

    mlx-lm loads many of them without a word and computes something else, for instance where transformers 5 nests the
    rope settings. Converted ones are known by mlxport.json, by mlx-lm's ``quantization`` block, or by the format that
    both write into each safetensors header.
    """
    from mlxport.layouts.mlx_whisper.layout import MLX_WHISPER
    from mlxport.source.declared_counts import check_output_counts
    from mlxport.source.safe_files import refuse_special_files

    refuse_special_files(folder)
    config = _read_config(folder, shown)
    if MLX_WHISPER.wrote(config) and any((folder / name).is_file() for name in _SPEECH):
        return None
    weights = sorted(folder.glob("model*.safetensors"))
    if weights and is_mlx_format(folder, config, weights):
        return check_output_counts(folder, config)
    target = re.sub(r"[^\w.-]", "-", Path(shown).name or folder.resolve().name) + "-mlx"
    hint = _CONVERT.format(source=shown, target=target)
    if not weights:
        found = "a PEFT adapter" if (folder / "adapter_config.json").is_file() else "no model*.safetensors"
        raise WeightsError(f"{shown}: {found}, expected the weights of an MLX model", hint=hint)
    raise SourceError(f"{shown} is not an MLX model: its weights were not written by MLX", hint=hint)


def is_mlx_format(folder: Path, config: Mapping[str, Any], weights: Iterable[Path]) -> bool:
    """Whether a folder's weights are laid out for MLX, by the marks that mlxport and mlx-lm leave."""
    from mlxport.layouts.hugging_face.layout import HUGGING_FACE
    from mlxport.output.record import read_record

    if (folder / "mlxport.json").is_file():
        options = read_record(folder).get("options")
        return not isinstance(options, Mapping) or options.get("layout") != HUGGING_FACE.name
    return bool(ModelConfig(config).mlx_quantization) or in_mlx_files(weights)


def in_mlx_files(weights: Iterable[Path]) -> bool:
    """Whether weight files, one at least, have the mark that both write into each header."""
    files = list(weights)
    return bool(files) and all(file.suffix == ".safetensors" and _format(file) == "mlx" for file in files)


def _read_config(folder: Path, shown: str) -> dict[str, Any]:
    from mlxport.source.jsonfile import read_object

    file = folder / "config.json"
    if not file.is_file():
        hint = "give the folder that contains config.json"
        if (folder / "adapter_config.json").is_file():
            hint = "this is a PEFT adapter: merge it into its base model, then convert that"
        raise ConfigError(f"{shown}: no config.json, so not the folder of a model", hint=hint)
    config = read_object(file, ConfigError, unique=False)
    if not isinstance(config.get("model_type"), str):
        raise ConfigError(f"{file}: expected an object with a model_type", hint="fetch or convert the model again")
    ModelConfig(config).check(file)
    return config


def _format(file: Path) -> str | None:
    """Return ``format`` of a safetensors header's metadata, None where there is none."""
    from mlxport.source.safetensors_file import read_metadata

    value = read_metadata(file).get("format")
    return value if isinstance(value, str) else None


def load_model(folder: Path, *, trust_remote_code: bool = False) -> tuple[Any, dict[str, Any]]:
    """Load weights and config of a checked folder with mlx-lm; a tokenizer is not needed."""
    from mlxport.layouts.generated.loading import load_language_model
    from mlxport.layouts.table import layout_of, why_not_generating
    from mlxport.output.record import read_record
    from mlxport.run.tasks.task_table import task_command, task_of_folder
    from mlxport.source.written_code import refuse_foreign_source
    from mlxport.transform.cpu_experts import half_precision_experts

    config = _read_config(folder, str(folder))
    record = read_record(folder)

    def for_its_task() -> str:
        task = task_of_folder(folder)
        run = "" if task in (None, "text-generation") else task_command(str(task), shlex.quote(str(folder)))
        return f"its task is {task}: {run}" if run else ""

    if record and (refusal := why_not_generating(layout_of(config, record), config, str(folder))) is not None:
        refuse_foreign_source(folder, config, trust_remote_code)  # the hint names a call that would run it
        what, hint = refusal
        raise UnsupportedError(f"{folder} is {what}", hint="; or ".join(filter(None, [for_its_task(), hint])))
    half_precision_experts()

    def failed(error: BaseException) -> MlxportError:
        if isinstance(error, ValueError) and "not supported" in str(error):
            hint = for_its_task() or "pip install -U mlx-lm may know it"
            return UnsupportedError(f"{folder}: mlx-lm does not know {config['model_type']!r}", hint=hint)
        hint = for_its_task() or "convert or fetch the model again"
        return WeightsError(f"{folder}: mlx-lm cannot load it: {reason(error)}", hint=hint)

    with refusing(failed):
        return load_language_model(folder, config, trust_remote_code=trust_remote_code)


def refuse_encoder(model: Any, folder: Path, what: str) -> None:
    """Refuse a model with an encoder where only what continues its prompt can be used.

    Args:
        model: It.
        folder: Where it lies.
        what: What cannot use it, at the head of an error.

    Raises:
        UsageError: It has one.
    """
    if hasattr(model, "encode"):
        hint = f'let it read a text and write another: mlxport run {shlex.quote(str(folder))} "a text"'
        raise UsageError(f"{what}: this model reads with an encoder, and continues no text", hint=hint)


def check_ids(tokens: Iterable[int], config: dict[str, Any]) -> None:
    """Refuse token ids that the embedding does not have: MLX would read zeros for them and say nothing.

    Raises:
        TokenizerError: A token lies outside of the vocabulary.
    """
    size = ModelConfig(config).vocabulary
    for token in tokens:
        if token < 0 or (size is not None and token >= size):
            hint = "use the tokenizer of this model"
            raise TokenizerError(f"token id {token} is outside of the vocabulary of {size}", hint=hint)


def _load_tokenizer(folder: Path, config: dict[str, Any], trust_remote_code: bool, *, skip_special: bool) -> Any:
    from mlx_lm.utils import load_tokenizer

    options = {"trust_remote_code": trust_remote_code}

    def refusal(error: BaseException) -> SourceError:
        if "trust_remote_code" in str(error):
            hint = "read that code, then pass --trust-remote-code"
            return UnsafeError(f"{folder}: the tokenizer needs code of the folder, not run", hint=hint)
        hint = "copy tokenizer.json and tokenizer_config.json of the original model into the folder"
        return TokenizerError(f"{folder}: no tokenizer could be loaded ({reason(error)})", hint=hint)

    check_settings(folder)
    ends = checked_ends(config.get("eos_token_id"), f"{folder}: config.json or generation_config.json")
    with refusing(refusal):
        wrapper = load_tokenizer(folder, options, eos_token_ids=ends)
    check_decoder(wrapper, folder)
    # mlx-lm chooses the detokenizer by the decoder's shape and has no way to give another. What a decoder writes for an
    # encoder begins with the token of its language: transformers leaves such tokens out of the text.
    wrapper._detokenizer = StreamedText(wrapper._tokenizer, skip_special=skip_special)
    return wrapper

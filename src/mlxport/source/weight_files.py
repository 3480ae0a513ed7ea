"""Which files of a folder or a repository hold the weights: decided from names alone, so before anything is fetched."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from mlxport.errors import ConfigError, SourceError, UnsafeError, UnsupportedError, WeightsError
from mlxport.source.jsonfile import read_object
from mlxport.source.safe_files import inside

Kind = Literal["safetensors", "torch", "npz"]

# safetensors before torch, as transformers looks for them, and of each the index first: it says what belongs to the
# checkpoint (transformers prefers a single model.safetensors beside it, which may be one of its shards, or a stray).
_CANONICAL: tuple[tuple[Kind, str], ...] = (
    ("safetensors", "model.safetensors.index.json"),
    ("safetensors", "model.safetensors"),
    ("torch", "pytorch_model.bin.index.json"),
    ("torch", "pytorch_model.bin"),
    ("npz", "weights.npz"),
)
_SUFFIXES: tuple[tuple[Kind, str], ...] = (("safetensors", ".safetensors"), ("torch", ".bin"), ("npz", ".npz"))

# Modules that sentence-transformers runs after the model, each in a folder with its number: pooling, a dense layer.
_MODULES = "[0-9]_*"
_AFTER_THE_MODEL = tuple(f"{_MODULES}/*.{suffix}" for suffix in ("json", "txt", "model", "safetensors", "bin"))
# What is worth carrying to the output besides weights and config.json.
SIDE_PATTERNS = (
    "tokenizer*.json",
    "*.model",  # tokenizer.model, spiece.model, sentencepiece.bpe.model
    "tokenizer.model.v*",
    "tekken.json",
    "*.tiktoken",
    "*.spm",
    "*.bpe",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "normalizer.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    *_AFTER_THE_MODEL,
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
    "README.md",
    "*.py",
)
SIDE_FOLDERS = tuple(dict.fromkeys(pattern.partition("/")[0] for pattern in SIDE_PATTERNS if "/" in pattern))
"""Patterns of the folders in which some of them lie."""
_NOT_SIDE = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz", ".onnx", ".h5", ".msgpack")
_GGUF = "mlxport convert FILE.gguf DST"
PORT = "mlxport port FILE.py:FACTORY DST"
PORT_THE_ORIGINAL = f"port the PyTorch module that it was made from, by a function that returns it with inputs: {PORT}"
OTHER_FRAMEWORKS = {
    ".onnx": "an ONNX graph, not a PyTorch model",
    ".npz": "an archive of arrays, without a model",
    ".h5": "a file of TensorFlow's, not a PyTorch model",
    ".msgpack": "a file of Flax's, not a PyTorch model",
}
_TRAINER_FILES = re.compile(r"(optimizer|scheduler|scaler|rng_state\w*|training_args|random_states\w*)\.(pt|pth|bin)")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.safetensors|\.bin)")
_NUMBERED = re.compile(r"weights\.(?P<number>\d+)\.npz")
_AGAIN = "get the index again from where the checkpoint comes from"


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The weights of a checkpoint by name.

    Attributes:
        kind: Format of the files.
        files: File names; empty if ``index`` names them.
        index: Name of the index, or None.
    """

    kind: Kind
    files: tuple[str, ...] = ()
    index: str | None = None


def choose_weight_files(names: Iterable[str], where: str) -> WeightFiles:
    """The files that transformers would load, and a guess only where it would load none; never both formats.

    A canonical name of either format comes before every guess: what lies beside it (an old copy, the index of another
    one) changes nothing.

    Args:
        names: Files at the top of the folder.
        where: The folder, for errors.

    Raises:
        WeightsError: No weights, an incomplete set of shards, or several files that could be meant.
        UnsupportedError: Only formats that are not read.
    """
    present = sorted(name for name in names if "/" not in name and not is_hidden(name))
    for kind, name in _CANONICAL:
        if name in present:
            return WeightFiles(kind, index=name) if name.endswith(".json") else WeightFiles(kind, (name,))
    for kind, suffix in _SUFFIXES:
        layout = _guess(present, kind, suffix, where)
        if layout is not None:
            return layout
    raise _nothing_to_read(present, where)


def is_hidden(name: str) -> bool:
    """Whether the file is one that a system keeps for itself, such as macOS's ``._model.safetensors``."""
    return name.rpartition("/")[2].startswith(".")


def _guess(present: list[str], kind: Kind, suffix: str, where: str) -> WeightFiles | None:
    """The weights where no file has a canonical name: one index, one file, or a complete set of shards."""
    indexes = [name for name in present if name.endswith(f"{suffix}.index.json")]
    if len(indexes) == 1:
        return WeightFiles(kind, index=indexes[0])
    for name in ("model.pt", "model.pth") if kind == "torch" else ():
        if name in present:
            return WeightFiles(kind, (name,))
    suffixes = (suffix, ".pt", ".pth") if kind == "torch" else (suffix,)
    others = [name for name in present if name.endswith(suffixes) and _is_model_file(name)]
    if not others:
        return None
    shards = _numbered(others, where) if kind == "npz" else _complete_set(others, where)
    if shards is not None:
        return WeightFiles(kind, shards)
    if len(others) == 1:
        return WeightFiles(kind, (others[0],))
    *_, single = (name for known, name in _CANONICAL if known == kind)
    raise WeightsError(
        f"{where} has {len(others)} weight files and no index to say which count: {', '.join(others[:5])}",
        hint=f"keep one of them, as {single}, or add the index {single}.index.json",
    )


def _is_model_file(name: str) -> bool:
    return not (name.startswith(("adapter_model.", "consolidated")) or _TRAINER_FILES.fullmatch(name))


def _complete_set(names: list[str], where: str) -> tuple[str, ...] | None:
    """The shards ``…-0000i-of-0000N``, None if the files are not named so."""
    sets: dict[tuple[str, str, str], dict[int, str]] = defaultdict(dict)
    for name in names:
        if match := _SHARD.fullmatch(name):
            sets[match["stem"], match["count"], match["suffix"]][int(match["number"])] = name
    if len(sets) != 1:
        return None
    (((stem, count, suffix), shards),) = sets.items()
    missing = sorted({*range(1, int(count) + 1)} - {*shards})
    if missing:
        absent = f"{stem}-{missing[0]:05d}-of-{count}{suffix}"
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise WeightsError(f"{where}: the shard {absent} is missing{more}", hint="download the missing files")
    return tuple(shards[number] for number in sorted(shards))


def _numbered(names: list[str], where: str) -> tuple[str, ...] | None:
    """The files ``weights.N.npz``, as MLX's examples wrote large models, None if they are not named so."""
    found = {int(match["number"]): name for name in names if (match := _NUMBERED.fullmatch(name))}
    if len(found) != len(names):
        return None
    missing = sorted({*range(max(found))} - {*found})
    if missing:
        raise WeightsError(f"{where}: the file weights.{missing[0]:02d}.npz is missing", hint="get the missing files")
    return tuple(found[number] for number in sorted(found))


def _nothing_to_read(present: list[str], where: str) -> SourceError | UnsupportedError:
    if any(name.endswith(".gguf") for name in present):
        return UnsupportedError(
            f"{where} holds GGUF weights only", hint=f"download one of its files and give that: {_GGUF}"
        )
    if any(name.startswith("consolidated.") for name in present):
        return UnsupportedError(
            f"{where} holds weights in the original Meta or Mistral format only (consolidated.*)",
            hint="use the Hugging Face version of this model (model.safetensors)",
        )
    if any(name.endswith(tuple(OTHER_FRAMEWORKS)) for name in present):
        return UnsupportedError(
            f"{where} holds no PyTorch weights, only those of another framework",
            hint="save the model with save_pretrained from PyTorch",
        )
    return WeightsError(
        f"{where} holds no weights: expected model.safetensors, an index with its shards, or pytorch_model.bin",
        hint="download the weights, or save the model with save_pretrained",
    )


def explain_no_config(names: Iterable[str], where: str) -> SourceError | UnsupportedError:
    """The error for a folder without config.json, by what it holds instead."""
    present = set(names)
    if not present:
        return SourceError(f"{where} is empty", hint="give the folder that holds config.json and the weights")
    if "adapter_config.json" in present:
        return SourceError(
            f"{where} is an adapter-only (PEFT) folder: it holds no base model",
            hint="merge it first: PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)",
        )
    if "model_index.json" in present:
        return UnsupportedError(f"{where} is a diffusers pipeline of several models", hint=_parts_of_a_pipeline(where))
    if "params.json" in present or any(name.startswith("consolidated.") for name in present):
        return UnsupportedError(
            f"{where} is in the original Meta or Mistral format (params.json, consolidated.*)",
            hint="use the Hugging Face version of this model",
        )
    if any(name.endswith(".gguf") for name in present):
        return UnsupportedError(f"{where} holds GGUF files", hint=f"download one of them and give that: {_GGUF}")
    foreign = next((name for name in sorted(present) if name.endswith(tuple(OTHER_FRAMEWORKS))), None)
    if foreign is not None:
        what = OTHER_FRAMEWORKS[Path(foreign).suffix]
        return UnsupportedError(f"{where} has no config.json, and {foreign} is {what}", hint=PORT_THE_ORIGINAL)
    if any(name.endswith((".pt", ".pth", ".ckpt", ".bin", ".safetensors")) for name in present):
        return ConfigError(
            f"{where} has no config.json, which says what its weights are of",
            hint="of a Hugging Face model add its config.json; of a module of your own let a function load the weights "
            f"and return the module with example inputs: {PORT}",
        )
    return ConfigError(
        f"{where} has no config.json", hint="give the folder that save_pretrained wrote, or add its config.json"
    )


def _parts_of_a_pipeline(where: str) -> str:
    """How the models of a diffusers pipeline are converted: those of transformers by convert, the others by port."""
    other = f"a part of diffusers (unet, transformer, vae) is ported by a function that returns it: {PORT}"
    if not Path(where).is_dir():
        return f"download it and give the folder of its text encoder; {other}"
    found = sorted(str(path.parent) for path in Path(where).glob("*/config.json") if _names_model_type(path))
    return (
        f"convert a part that is of transformers: mlxport convert {shlex.quote(found[0])} DST; {other}"
        if found
        else other
    )


def _names_model_type(path: Path) -> bool:
    try:
        return "model_type" in read_object(path, ConfigError, unique=False)
    except ConfigError:
        return False


def side_names(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are worth carrying, sorted."""
    return sorted(
        name
        for name in names
        if name != "config.json"
        and not is_hidden(name)
        and not (name.endswith(_NOT_SIDE) and "/" not in name)
        and any(matches(name, pattern) for pattern in SIDE_PATTERNS)
    )


def matches(name: str, pattern: str) -> bool:
    """Whether a path within the folder is one that ``pattern`` names; ``*`` does not reach into a folder."""
    return fnmatchcase(name, pattern) and name.count("/") == pattern.count("/")


def read_index(root: Path, name: str) -> dict[str, str]:
    """Tensor name to file name, as the index has them.

    Raises:
        WeightsError: The index is malformed.
        UnsafeError: It names a file outside the folder.
    """
    path = inside(root, name)
    weight_map: Any = read_object(path, WeightsError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{path} has no weight_map with tensors in it", hint=_AGAIN)
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            raise UnsafeError(
                f"{path}: the file of tensor {tensor!r} is not a name but {str(file)[:80]!r}", hint=_AGAIN
            )
    for file in dict.fromkeys(weight_map.values()):
        inside(root, file, named_by=str(path))
    return weight_map

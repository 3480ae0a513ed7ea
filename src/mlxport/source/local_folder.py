"""Open a local folder: find config and weights, check every header, hand over references."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mlxport.errors import ConfigError, SourceError, TokenizerError, UnsafeError, WeightsError
from mlxport.source.config_file import check_consistency, read_config
from mlxport.source.declared_counts import check_counts
from mlxport.source.file_state import state_of, states_of
from mlxport.source.jsonfile import read_object
from mlxport.source.leftover_quantization import names_quantization, without_leftover_quantization
from mlxport.source.open_clip_config import OPEN_CLIP, clip_config, config_name
from mlxport.source.safe_files import inside, opened, read_exactly, refuse_placeholder, refuse_special_files
from mlxport.source.safetensors_file import read_safetensors
from mlxport.source.sentence_folder import with_base_class
from mlxport.source.weight_files import (
    SIDE_FOLDERS,
    WeightFiles,
    choose_weight_files,
    explain_no_config,
    is_hidden,
    read_index,
    side_names,
)
from mlxport.types import Checkpoint, FileState, TensorRef

# A licence may well be a web page, or Markdown that begins like one.
_LEGAL_TEXT = re.compile(r"(LICENSE|NOTICE|USE_POLICY).*\.(html?|md)", re.IGNORECASE)

CheckConfig = Callable[[Mapping[str, Any]], None]
# Reads the tensors of one file and what is odd about it; the hub has one that fetches headers only.
ReadFile = Callable[[Path], tuple[dict[str, TensorRef], list[str]]]


def open_folder(
    root: Path,
    *,
    check_config: CheckConfig | None = None,
    trust_remote_code: bool = False,
    repo_id: str | None = None,
    revision: str | None = None,
    names: Iterable[str] | None = None,
    read_file: ReadFile | None = None,
) -> Checkpoint:
    """The checkpoint in ``root``.

    Args:
        root: The folder.
        check_config: Called with the parsed config before any weights are looked at.
        trust_remote_code: Whether the folder's Python files are carried, and so checked.
        repo_id: Recorded in the result.
        revision: Recorded in the result.
        names: Files that count; by default those that the folder holds.
        read_file: Reads the header of one safetensors file; by default from the folder.

    Raises:
        SourceError: As the class of what is wrong; see ``errors.py``.
    """
    present = list_folder(root)
    states = states_of(root, present)
    config, problems = load_config(root, present, check_config)
    counted = present if names is None else sorted(names)
    layout = choose_weight_files(counted, str(root))
    tensors, files, found = _read_weights(root, layout, _noting(states, read_file or _reader(layout)))
    check_counts(config, {name: ref.shape for name, ref in tensors.items()}, root / "config.json")
    if names_quantization(config):
        config, leftover = without_leftover_quantization(config, tensors)
        problems += leftover
        if check_config is not None:
            check_config(config)
    named = {file.name for file in files}
    strays = [n for n in counted if n.endswith(".safetensors") and "/" not in n and n not in named]
    found += map(ignored, strays)
    problems += found + check_consistency(config, tensors)
    side_files = _side_files(root, counted, trust_remote_code)
    refuse_special_files(root)  # what only libraries read of it
    parts = {root / config_name(counted), *([root / layout.index] if layout.index else []), *files, *side_files}
    return Checkpoint(
        root=root,
        config=config,
        tensors=tensors,
        weight_files=files,
        side_files=side_files,
        repo_id=repo_id,
        revision=revision,
        problems=tuple(problems),
        trust_remote_code=trust_remote_code,
        states={path: state for path, state in states.items() if path in parts},
    )


def ignored(name: str) -> str:
    """What is said of a file of tensors that is no part of a checkpoint."""
    return f"{name} is not part of the checkpoint and is ignored"


def list_folder(root: Path) -> list[str]:
    """Names of the files in ``root`` and, where side files lie there, one level below; sorted."""
    names = entries(root)
    folders = [name for name in names if any(fnmatchcase(name, pattern) for pattern in SIDE_FOLDERS)]
    names += [f"{folder}/{name}" for folder in folders if (root / folder).is_dir() for name in entries(root / folder)]
    return sorted(name for name in names if _counts(root, name))


def entries(folder: Path) -> list[str]:
    """Names of what is in a folder.

    Raises:
        SourceError: It cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return [entry.name for entry in found]
    except OSError as error:
        raise SourceError(f"{folder} cannot be read: {error.strerror}", hint="check its permissions") from error


def _counts(root: Path, name: str) -> bool:
    """Whether a name can be of a part of the checkpoint: not hidden, no folder, and printable, so that it can be told.

    A config.json that is a folder stays, to be told from one that is absent.
    """
    if is_hidden(name) or not name.isprintable():
        return False
    return name == "config.json" or not os.path.isdir(root / name)


def load_config(
    root: Path, present: Iterable[str], check_config: CheckConfig | None
) -> tuple[dict[str, Any], list[str]]:
    """The config of a folder, checked by the caller's function too, and what is odd in it.

    One that names a quantization is left for the caller to check, once the headers have said whether there is one.
    """
    present = set(present)
    if (name := config_name(present)) not in present:
        raise explain_no_config(entries(root), str(root))
    if name == OPEN_CLIP:
        given = read_object(inside(root, name), ConfigError, unique=False)
        config, problems = clip_config(given, str(root / name)), list[str]()
    else:
        config, problems = read_config(inside(root, name))
        config = with_base_class(config, root)
    if "adapter_config.json" in present and not any(
        name.endswith((".safetensors", ".bin")) and not name.startswith("adapter_model.") for name in present
    ):
        raise explain_no_config(present, str(root))
    if check_config is not None and not names_quantization(config):
        check_config(config)
    return config, problems


def _reader(layout: WeightFiles) -> ReadFile:
    if layout.kind == "safetensors":
        return lambda path: (read_safetensors(path), [])
    if layout.kind == "npz":
        from mlxport.source.npz_file import read_npz_file

        return lambda path: (read_npz_file(path), [])
    from mlxport.source.torch_file import read_torch_file

    return read_torch_file


def _noting(states: dict[Path, FileState], read_file: ReadFile) -> ReadFile:
    """``read_file`` that adds the state of a file to ``states`` first: an index may name files deeper in the folder."""

    def read(path: Path) -> tuple[dict[str, TensorRef], list[str]]:
        if path not in states and (state := state_of(path)) is not None:
            states[path] = state
        return read_file(path)

    return read


def _read_weights(
    root: Path, layout: WeightFiles, read_file: ReadFile
) -> tuple[dict[str, TensorRef], tuple[Path, ...], list[str]]:
    """The tensors in order, the files that hold them, and what is odd."""
    problems: list[str] = []
    by_file: dict[str, dict[str, TensorRef]] = {}
    weight_map = read_index(root, layout.index) if layout.index else None
    for name in layout.files if weight_map is None else dict.fromkeys(weight_map.values()):
        path = inside(root, name, named_by=layout.index or "")
        try:
            by_file[name], odd = read_file(path)
        except WeightsError as error:
            if layout.index is None or not isinstance(error.__cause__, FileNotFoundError):
                raise
            raise WeightsError(
                f"{root}: the shard {name}, which {layout.index} names, is missing", hint="download the missing file"
            ) from error
        problems += odd
    files = tuple(root / name for name in by_file)
    if weight_map is None:
        return _merge(by_file), files, problems
    tensors: dict[str, TensorRef] = {}
    for tensor, name in weight_map.items():
        if tensor not in by_file[name]:
            raise WeightsError(
                f"{root / name} does not hold the tensor {tensor!r}, which {layout.index} says is in it",
                hint="index and shards are of different versions; download both again",
            )
        ref = by_file[name][tensor]
        tensors[ref.name] = ref  # one string for the name, not another from the index
    for name, held in by_file.items():
        extra = [tensor for tensor in held if weight_map.get(tensor) != name]
        if extra:
            more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
            problems.append(f"{name} holds {extra[0]!r}{more}, which the index does not name there: ignored")
    return tensors, files, problems


def _merge(by_file: Mapping[str, dict[str, TensorRef]]) -> dict[str, TensorRef]:
    """The tensors of all files; a name may be in one of them only."""
    tensors: dict[str, TensorRef] = {}
    for refs in by_file.values():
        for name, ref in refs.items():
            if name in tensors:
                raise WeightsError(
                    f"the tensor {name!r} is in {tensors[name].path} and in {ref.path}",
                    hint="keep one of the two, or add the index that says which counts",
                )
            tensors[name] = ref
    return tensors


def _side_files(root: Path, present: Iterable[str], trust_remote_code: bool) -> tuple[Path, ...]:
    """Paths of what lies beside the weights; what is to be carried is checked, the rest is not even opened.

    Not carried are the model card, which is written anew, and code that nobody trusts.
    """
    paths = []
    for name in side_names(present):
        if name == "README.md" or (name.endswith(".py") and not trust_remote_code):
            if _is_own_file(root, name):
                paths.append(root / name)
        else:
            paths.append(checked_side_file(root, name))
    return tuple(paths)


def _is_own_file(root: Path, name: str) -> bool:
    try:
        return os.path.isfile(inside(root, name))
    except UnsafeError:
        return False


def checked_side_file(root: Path, name: str) -> Path:
    """The path of a regular file inside the folder that is not a placeholder."""
    path = inside(root, name)
    with opened(path, SourceError) as (fd, size):
        start = read_exactly(fd, min(size, 512), 0, path)
    refuse_placeholder(
        start,
        path,
        TokenizerError if "token" in name or "vocab" in name else SourceError,
        web_page=not _LEGAL_TEXT.fullmatch(name),
    )
    return path

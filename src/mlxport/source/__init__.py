"""Open a checkpoint and read from it: a folder or a Hugging Face repository, safetensors or torch files.

Nothing here trusts what it reads, and nothing heavy is imported until it is needed.

Imports: config_values, errors, printable, types, model_config.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlxport.errors import SourceError, UnsupportedError
from mlxport.source.config_file import check_consistency, needs_remote_code, refuse_remote_code
from mlxport.source.local_folder import list_folder, open_folder
from mlxport.source.pipeline_files import is_pipeline
from mlxport.source.row_reader import hash_file, read_rows
from mlxport.source.weight_files import OTHER_FRAMEWORKS, PORT, PORT_THE_ORIGINAL
from mlxport.types import Checkpoint

__all__ = ["check_consistency", "hash_file", "needs_remote_code", "open_checkpoint", "read_rows", "refuse_remote_code"]

# What the hub accepts: https://huggingface.co/docs/huggingface_hub/package_reference/utilities (validate_repo_id)
_REPO_ID = re.compile(r"(?!.*(?:--|\.\.))(?:[A-Za-z0-9_][\w.-]{0,95}/)?[A-Za-z0-9_](?:[\w.-]{0,94}\w)?", re.ASCII)
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def open_checkpoint(
    source: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    check_config: Callable[[Mapping[str, Any]], None] | None = None,
    headers_only: bool = False,
    check_headers: Callable[[Checkpoint], None] | None = None,
) -> Checkpoint:
    """Open a checkpoint: read config and headers, check them, leave the weights on disk.

    Args:
        source: A folder, or the id of a repository on the Hugging Face hub (``org/name``).
        revision: Branch, tag or commit of the repository; None is its main branch.
        trust_remote_code: Fetch a repository's Python files too, and check those of a folder. They are never run here;
            the checkpoint carries it to where they are.
        check_config: Called with the config before any weights are fetched or opened (where it names a quantization, as
            the headers have it); what it raises goes through.
        headers_only: Of a repository's weights fetch the headers only: shapes and dtypes are known, reading fails.
        check_headers: Called with a repository's checkpoint, as with ``headers_only``, before its weights are fetched;
            not where they are here already, or their headers cannot be had alone. What it raises goes through.

    Raises:
        SourceError: Names the file, what is wrong with it and the remedy. ConfigError, WeightsError, UnsafeError,
            TokenizerError are the finer classes.
        UnsupportedError: A format that is not read (the original Meta format, ONNX, other pipelines of diffusers).
    """
    path = Path(os.path.abspath(os.path.expanduser(source)))
    if _is(os.path.isdir, path):
        if revision is not None:
            raise SourceError(
                f"{path} is a folder and has no revisions", hint="leave out the revision, or give a hub id"
            )
        if files := _gguf_alone(path):
            from mlxport.source.gguf.opening import one_file, open_gguf

            return open_gguf(one_file(path, files), check_config)
        if is_pipeline(list_folder(path)):
            from mlxport.source.diffusers_folder import open_pipeline

            return open_pipeline(path, check_config=check_config, trust_remote_code=trust_remote_code)
        return open_folder(path, check_config=check_config, trust_remote_code=trust_remote_code)
    if path.suffix == ".gguf" and _is(os.path.isfile, path):
        from mlxport.source.gguf.opening import open_gguf

        return open_gguf(path, check_config)
    if path.suffix == ".pt" and _is(os.path.isfile, path):
        from mlxport.source.openai_whisper import open_whisper_file

        if (whisper := open_whisper_file(path, check_config)) is not None:
            return whisper
    if _is(os.path.lexists, path):
        raise _not_a_folder(path)
    if isinstance(source, Path) or not _REPO_ID.fullmatch(source):
        raise _no_such_folder(str(source))
    from mlxport.source.hub import open_repository

    return open_repository(source, revision, trust_remote_code, check_config, headers_only, check_headers)


def _is(test: Callable[[Path], bool], path: Path) -> bool:
    try:
        return test(path)
    except (OSError, ValueError):  # a name too long, or one with NUL
        return False


def _gguf_alone(folder: Path) -> list[str]:
    """The GGUF files of a folder that holds no other weights."""
    names = [name for name in list_folder(folder) if "/" not in name]
    return [] if any(name.endswith(_WEIGHT_SUFFIXES) for name in names) else [n for n in names if n.endswith(".gguf")]


def _not_a_folder(path: Path) -> SourceError | UnsupportedError:
    if path.suffix == ".zip":
        return SourceError(f"{path} is an archive, not a folder", hint="unpack it and give the folder")
    if path.suffix in _WEIGHT_SUFFIXES:
        return SourceError(
            f"{path} is a single weights file, not a checkpoint",
            hint="of a Hugging Face model give the folder with its config.json; of a module of your own let a function "
            f"load this file and return the module with example inputs: {PORT}",
        )
    if path.suffix in OTHER_FRAMEWORKS:
        return UnsupportedError(f"{path} is {OTHER_FRAMEWORKS[path.suffix]}", hint=PORT_THE_ORIGINAL)
    if path.suffix == ".py":
        return SourceError(f"{path} is a Python file", hint=f"name its function too: mlxport port {path}:FACTORY DST")
    return SourceError(f"{path} is not a folder", hint="give the folder that holds config.json and the weights")


def _no_such_folder(source: str) -> SourceError:
    if source.startswith(("http://", "https://", "hf.co/", "huggingface.co/")):
        return SourceError(f"{source} is an address", hint="give the id of the repository alone: org/name")
    if re.fullmatch(r".+\.py:\w+", source):
        return SourceError(f"{source} names a function that makes a module", hint=f"mlxport port {source} DST")
    if "/" in source or "\\" in source or source.startswith((".", "~")):
        return SourceError(f"{source}: no such folder", hint="check the path; a hub id has the form org/name")
    return SourceError(
        f"{source[:200]!r} is neither a folder nor the id of a hub repository", hint="a hub id has the form org/name"
    )

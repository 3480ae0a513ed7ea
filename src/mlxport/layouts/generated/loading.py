"""Load a port: its own source runs, with its own weights, once it is sure whose source that is."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.nn as nn

from mlxport.errors import SourceError
from mlxport.graph.write.execute_source import execute
from mlxport.source.declared_counts import check_output_counts
from mlxport.source.jsonfile import read_object
from mlxport.source.safe_files import refuse_special_files
from mlxport.source.written_code import PARTS, code_files, model_file, refuse_model_file, source_to_run
from mlxport.transform.cpu_experts import half_precision_experts

_HALF = re.compile(r"\bmx\.b?float16\b")

__all__ = ["check_source", "load_language_model", "load_part", "load_parts", "load_port", "unquantized_port"]


def check_source(folder: Path, trust_remote_code: bool, part: str = "") -> bytes:
    """The source of a port or a part of one, if it may run.

    Nothing else of the folder can: it is executed as it stands, not imported.

    Raises:
        UnsafeError: This installation did not write it, and it is not trusted.
        SourceError: It is not there.
    """
    file = f"{part or 'model'}.py"
    if not (folder / file).exists():
        raise SourceError(f"{folder} has no {file}, which its config names", hint="port it again")
    refuse_special_files(folder)
    return source_to_run(folder / file, trust_remote_code)


def load_port(folder: Path, *, trust_remote_code: bool = False) -> nn.Module:
    """The module of a port's folder.

    Raises:
        UnsafeError: This installation did not write its source, and it is not trusted.
        SourceError: It has no source, or does not load.
    """
    return _made(folder, trust_remote_code, lambda source: source.load(folder))


def load_language_model(
    folder: Path,
    config: Mapping[str, Any],
    *,
    lazy: bool = False,
    trust_remote_code: bool = False,
    in_float32: bool = False,
) -> tuple[nn.Module, dict[str, Any]]:
    """``mlx_lm.utils.load_model`` of a folder, built by its own source where its config names one that may run.

    mlx-lm would import that file, and take its byte code from beside it: what was checked is run instead.

    Args:
        folder: The folder.
        config: Its config.json.
        lazy: Whether to leave the weights on disk.
        trust_remote_code: Whether source that this installation did not write may run.
        in_float32: Whether what the source casts to the dtype of its weights stays float32, for who upcasts these.

    Returns:
        The model, and its config as mlx-lm reads it.

    Raises:
        UnsafeError: This installation did not write its source, and it is not trusted.
    """
    from mlx_lm.utils import load_model

    path = model_file(folder, config)
    if path is None:
        return load_model(folder, lazy=lazy)  # type: ignore[no-any-return]
    refuse_special_files(folder)
    if not os.path.lexists(path):
        refuse_model_file(folder, config, trust_remote_code)
    text = source_to_run(path, trust_remote_code).decode()
    source = execute(_HALF.sub("mx.float32", text) if in_float32 else text, str(path))
    model, loaded = load_model(
        folder, lazy=lazy, model_config={"model_file": None},
        get_model_classes=lambda config: (source.Model, source.ModelArgs),
    )  # fmt: skip
    return model, {**loaded, "model_file": config["model_file"]}


class _Parts(nn.Module):  # type: ignore[misc]
    """The parts of a model as attributes: each is called by itself."""


def load_parts(folder: Path, *, trust_remote_code: bool = False) -> nn.Module:
    """The parts of a port's folder, each as the attribute of its name.

    Raises:
        UnsafeError: This installation did not write the source of one, and it is not trusted.
        SourceError: One has no source, or does not load.
    """
    parts = _Parts()
    for name in code_files(folder, read_object(folder / "config.json", SourceError)):
        if name:
            parts[name] = load_part(folder, name, trust_remote_code=trust_remote_code)
    return parts


def load_part(folder: Path, name: str, *, trust_remote_code: bool = False) -> nn.Module:
    """The module of one part of a port's folder; errors as of ``load_parts``."""
    return _made(folder, trust_remote_code, lambda source: source.load(folder), name)


def unquantized_port(folder: Path, part: str = "", *, trust_remote_code: bool = False) -> nn.Module:
    """The module of a port's folder, or of a part of it, as its source makes it.

    Nothing is quantized, and the weights are not the stored.

    Raises:
        UnsafeError: As of ``load_port``.
        SourceError: As of ``load_port``.
    """
    config = read_object(folder / "config.json", SourceError)
    fields = config[PARTS][part] if part else config
    return _made(folder, trust_remote_code, lambda source: source.Model(source.ModelArgs.from_dict(fields)), part)


def _made(folder: Path, trust_remote_code: bool, make: Callable[[Any], nn.Module], part: str = "") -> nn.Module:
    source = check_source(folder, trust_remote_code, part)
    check_output_counts(folder, read_object(folder / "config.json", SourceError))
    half_precision_experts()
    try:
        return make(execute(source.decode(), str(folder / f"{part or 'model'}.py")))
    except Exception as error:  # the folder's own code and files, whatever is wrong with them
        raise SourceError(
            f"{folder} does not load: {type(error).__name__}: {error}", hint="port it again, or restore its files"
        ) from error

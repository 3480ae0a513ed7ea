"""Open a pipeline of diffusers: several models side by side, each with config and weights in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlxport.errors import ConfigError, WeightsError
from mlxport.source.file_state import states_of
from mlxport.source.jsonfile import read_object
from mlxport.source.local_folder import checked_side_file, entries
from mlxport.source.pipeline_files import (
    PIPELINE_FILE,
    SCHEDULER,
    ComponentFiles,
    component_files,
    pipeline_class,
    pipeline_side_names,
)
from mlxport.source.safe_files import inside, refuse_special_files
from mlxport.source.safetensors_file import read_safetensors
from mlxport.source.weight_files import explain_no_config, is_hidden, read_index
from mlxport.types import Checkpoint, TensorRef

__all__ = ["COMPONENTS", "component_of", "list_pipeline", "open_pipeline", "pipeline_config"]

COMPONENTS = "components"
"""Field of a pipeline's config with the config of each of its models, by name."""


def list_pipeline(root: Path) -> list[str]:
    """Files of a pipeline's folder and of the folders in it, by their paths there, sorted."""
    names = entries(root)
    folders = [name for name in names if not is_hidden(name) and (root / name).is_dir()]
    found = [f"{folder}/{name}" for folder in folders for name in entries(root / folder)]
    return sorted(name for name in (*names, *found) if name.isprintable() and (root / name).is_file())


def open_pipeline(
    root: Path,
    *,
    check_config: Callable[[Mapping[str, Any]], None] | None = None,
    trust_remote_code: bool = False,
    repo_id: str | None = None,
    revision: str | None = None,
    names: Iterable[str] | None = None,
) -> Checkpoint:
    """The checkpoint in a pipeline's folder; a tensor is named ``MODEL.NAME``, as ``unet.conv_in.weight``.

    Args:
        root: The folder.
        check_config: Called with the config before any weights are looked at.
        trust_remote_code: Recorded in the result.
        repo_id: Recorded in the result.
        revision: Recorded in the result.
        names: Files that count; by default those that the folder holds.

    Raises:
        UnsupportedError: A pipeline of a class that is not read.
        ConfigError: A model of it is not there, or a config is malformed.
        WeightsError: A model has no weights, or they are malformed.
    """
    present = list_pipeline(root) if names is None else sorted(names)
    config, files = pipeline_config(root, present)
    if check_config is not None:
        check_config(config)
    refuse_special_files(root)
    tensors: dict[str, TensorRef] = {}
    problems: list[str] = []
    for component in files:
        read, odd = _read(root, component)
        tensors |= {f"{component.name}.{name}": ref for name, ref in read.items()}
        problems += [f"{component.name}: {what}" for what in odd]
        if component.variant:
            problems.append(f"{component.name}: of its weights only the variant {component.variant} is there")
    side = tuple(checked_side_file(root, name) for name in pipeline_side_names(present) if name != "README.md")
    tensors = {name: replace(ref, name=name, key=ref.name_in_file) for name, ref in tensors.items()}
    weights = tuple(dict.fromkeys(ref.path for ref in tensors.values()))
    parts = [root / PIPELINE_FILE, root / SCHEDULER, *(root / c.name / "config.json" for c in files), *weights, *side]
    return Checkpoint(
        root=root,
        config=config,
        tensors=tensors,
        weight_files=weights,
        side_files=side,
        repo_id=repo_id,
        revision=revision,
        problems=tuple(problems),
        trust_remote_code=trust_remote_code,
        states=states_of(root, [path.relative_to(root).as_posix() for path in parts]),
    )


def pipeline_config(root: Path, names: Iterable[str]) -> tuple[dict[str, Any], list[ComponentFiles]]:
    """What config.json of the whole pipeline would say, and where the weights of its models are.

    Raises:
        UnsupportedError: It is of a class that is not read.
        ConfigError: A model, or the scheduler, is not there, or a config is malformed.
        WeightsError: A model has no weights.
    """
    present = set(names)
    index = read_object(inside(root, PIPELINE_FILE), ConfigError, unique=False)
    kind = pipeline_class(index)
    if kind is None:
        raise explain_no_config(present, str(root))
    files = component_files(index, present, str(root))
    if SCHEDULER not in present:
        hint = "get that folder too, as by: hf download REPO --include 'scheduler/*' --local-dir DIR"
        raise ConfigError(f"{root}: the pipeline has no scheduler: {SCHEDULER} is missing", hint=hint)
    components = {
        item.name: read_object(inside(root, f"{item.name}/config.json"), ConfigError, unique=False) for item in files
    }
    config = {
        "model_type": kind,
        "architectures": [kind],
        COMPONENTS: components,
        "scheduler": read_object(inside(root, SCHEDULER), ConfigError, unique=False),
    }
    known = ("force_zeros_for_empty_prompt", "add_watermarker", "requires_aesthetics_score")
    return {**config, **{name: index[name] for name in known if name in index}}, files


def component_of(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """One model of a pipeline, as a checkpoint of its own."""
    prefix = f"{name}."
    return replace(
        checkpoint,
        root=checkpoint.root / name,
        config=checkpoint.config[COMPONENTS][name],
        tensors={key.removeprefix(prefix): ref for key, ref in checkpoint.tensors.items() if key.startswith(prefix)},
    )


def _read(root: Path, component: ComponentFiles) -> tuple[dict[str, TensorRef], list[str]]:
    """The tensors of a model, and what is odd about its files."""
    folder = root / component.name
    if not component.indexed:
        return _read_file(inside(root, component.file))
    weight_map = read_index(folder, Path(component.file).name)
    names = dict.fromkeys(weight_map.values())
    read = {name: _read_file(inside(folder, name, named_by=component.file)) for name in names}
    for tensor, file in weight_map.items():
        if tensor not in read[file][0]:
            raise WeightsError(
                f"{folder / file} does not hold the tensor {tensor!r}, which {component.file} says is in it",
                hint="index and shards are of different versions; download both again",
            )
    tensors = {tensor: read[file][0][tensor] for tensor, file in weight_map.items()}
    return tensors, [what for _, odd in read.values() for what in odd]


def _read_file(path: Path) -> tuple[dict[str, TensorRef], list[str]]:
    if path.suffix == ".safetensors":
        return read_safetensors(path), []
    from mlxport.source.torch_file import read_torch_file

    return read_torch_file(path)

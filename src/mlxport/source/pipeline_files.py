"""Which files of a pipeline of diffusers are read: decided from names alone, so before anything is fetched.

The format is that of https://github.com/huggingface/diffusers, src/diffusers/pipelines/pipeline_utils.py
(``save_pretrained``), with weights in variants (``diffusion_pytorch_model.fp16.safetensors``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlxport.errors import ConfigError, WeightsError

__all__ = [
    "PIPELINES",
    "PIPELINE_FILE",
    "SCHEDULER",
    "ComponentFiles",
    "component_files",
    "is_pipeline",
    "pipeline_class",
    "pipeline_side_names",
]

PIPELINE_FILE, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
PIPELINES: Mapping[str, tuple[str, ...]] = {
    "StableDiffusionPipeline": ("text_encoder", "unet", "vae"),
    "StableDiffusionXLPipeline": ("text_encoder", "text_encoder_2", "unet", "vae"),
}
"""Classes that are read, with the models that each has to have."""
_SAME_MODELS = {
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
}
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model|pytorch_model)(?:\.(?P<variant>\w+))?(?P<kind>\.safetensors|\.bin)"
    r"(?P<index>\.index(?:\.(?P<indexed>\w+))?\.json)?"
)
_SIDE = re.compile(
    r"tokenizer(?:_\d)?/[^/]+\.(?:json|txt|model)|(?:LICENSE|NOTICE|USE_POLICY)[^/]*|README\.md", re.IGNORECASE
)


@dataclass(frozen=True)
class ComponentFiles:
    """The weights of one model of a pipeline.

    Attributes:
        name: Of the model, and of its folder.
        file: Path of the one file, or of the index that names several, within the pipeline.
        variant: As ``fp16``; empty where the whole numbers are there.
    """

    name: str
    file: str
    variant: str

    @property
    def indexed(self) -> bool:
        """Whether the file is an index."""
        return self.file.endswith(".json")


def is_pipeline(names: Collection[str]) -> bool:
    """Whether a folder with files of these names is a pipeline of diffusers."""
    return PIPELINE_FILE in names and "config.json" not in names


def pipeline_class(index: Mapping[str, Any]) -> str | None:
    """The class of a pipeline that is read, by its model_index.json; None for another."""
    name = str(index.get("_class_name"))
    name = _SAME_MODELS.get(name, name)
    return name if name in PIPELINES else None


def component_files(index: Mapping[str, Any], names: Collection[str], where: str) -> list[ComponentFiles]:
    """The weights of each model that a pipeline has to have.

    Of a model with weights in several variants those without a name count, as in diffusers; else what there is.

    Args:
        index: model_index.json, of a class that is read.
        names: Files of the pipeline, with their folders.
        where: The pipeline, for errors.

    Raises:
        ConfigError: A model is not there.
        WeightsError: One has no weights.
    """
    kind = pipeline_class(index)
    assert kind is not None, "pipelines of other classes are refused first"
    return [_files_of(name, names, where) for name in PIPELINES[kind]]


def _files_of(component: str, names: Collection[str], where: str) -> ComponentFiles:
    config = f"{component}/config.json"
    again = f"get that folder too, as by: hf download REPO --include '{component}/*' --local-dir DIR"
    if config not in names:
        raise ConfigError(f"{where}: the pipeline has no {component}: {config} is missing", hint=again)
    found: list[tuple[bool, str, bool, bool, str]] = []
    for name in sorted(names):
        folder, _, file = name.rpartition("/")
        if folder == component and (match := _WEIGHTS.fullmatch(file)):
            variant = match["variant"] or match["indexed"] or ""
            found.append((bool(variant), variant, match["kind"] != ".safetensors", not match["index"], name))
    if not found:
        what = f"{where}: {component} has no weights (diffusion_pytorch_model or model, .safetensors or .bin)"
        raise WeightsError(what, hint=again)
    _, variant, _, _, name = min(found)
    return ComponentFiles(component, name, variant)


def pipeline_side_names(names: Iterable[str]) -> list[str]:
    """Files beside the weights that are worth carrying, sorted: those of tokenizers, and licences."""
    return sorted(name for name in names if _SIDE.fullmatch(name))

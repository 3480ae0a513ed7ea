"""What pictures add to a plan: the weights of what reads them, their tokens, and what a tower holds meanwhile."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from mlxport.errors import UsageError
from mlxport.fit.picture_report import PicturePlan
from mlxport.fit.quant_settings import Setting, SettingWeights, measure
from mlxport.fit.task_footprint import need_of_call
from mlxport.layouts.base import Layout, PlainOptions
from mlxport.layouts.mlx_vlm.families import family_of, picture_of
from mlxport.layouts.mlx_vlm.opening import weights_tree
from mlxport.layouts.mlx_vlm.picture_tokens import USUAL_PICTURE, PictureTokens
from mlxport.run.tasks.task_table import task_command
from mlxport.types import Checkpoint

__all__ = ["PlannedWhole", "parsed_size", "plan_pictures"]

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
_CHANNELS = 3


@dataclass(frozen=True)
class PlannedWhole:
    """A model of pictures and text, of which another plan knows the text model.

    Attributes:
        pictures: What pictures add.
        model: All weights under mlx-vlm's names, none of them in memory.
        parameters: Number of weights.
    """

    pictures: PicturePlan
    model: nn.Module
    parameters: int

    def weights(self, setting: Setting, text: SettingWeights) -> SettingWeights:
        """The bytes of the whole model under a setting, given those of its text model: a token reads only these."""
        return text if text.problem else replace(measure(self.model, setting, {}), read=text.read)


def parsed_size(given: str | None) -> tuple[int, int]:
    """Rows and columns of pixels of a size as people write it, ``1024x768``; a usual one for None.

    Raises:
        UsageError: It is none.
    """
    if given is None:
        return USUAL_PICTURE
    found = _SIZE.fullmatch(given.strip().lower())
    if found is None:
        raise UsageError(f"--image-size {given!r}: expected width and height in pixels", hint="as 1024x768")
    return int(found[2]), int(found[1])


def plan_pictures(checkpoint: Checkpoint, layout: Layout, dtype: str, size: tuple[int, int]) -> PlannedWhole:
    """What pictures add.

    Args:
        checkpoint: The original, of a family that mlx-vlm runs.
        layout: That of the whole model.
        dtype: Name of what is not quantized.
        size: Rows and columns of a picture's pixels.

    Raises:
        MlxportError: The checkpoint does not convert, or a picture of this size is not taken.
    """
    family = family_of(checkpoint.config)
    assert family is not None
    conversion = layout.opens(checkpoint, PlainOptions(dtype))
    model = weights_tree(family, conversion)
    tower = sum(value.nbytes for name, value in tree_flatten(model.parameters()) if family.is_tower(name))
    side = {path.name: path for path in checkpoint.side_files if path.parent == checkpoint.root}
    picture = picture_of(checkpoint.config, side, size)
    assert picture is not None
    notes, workspace = [], None
    if importlib.util.find_spec("mlx_vlm") is None:
        notes.append("what a tower holds while it reads is not counted without mlx-vlm: pip install 'mlxport[vlm]'")
    elif (workspace := _held(conversion.config, dtype, picture)) is None:
        notes.append("what the tower holds while it reads a picture could not be counted")
    runs = task_command(layout.task_of(checkpoint.config), "DST")
    return PlannedWhole(PicturePlan(picture, tower, workspace, runs, tuple(notes)), model, conversion.parameters)


def _held(config: dict[str, Any], dtype: str, picture: PictureTokens) -> int | None:
    """What mlx-vlm's tower holds besides weights for one picture, None where its code cannot be followed."""
    kind = getattr(mx, dtype)
    model = _tower(config, kind)
    pixels, more = _inputs(config, picture, kind)

    def read(pixels: mx.array) -> Any:
        return model(pixels, **more)

    need = need_of_call(model, {"pixels": pixels}, read)
    return None if need is None else need.nbytes


def _tower(config: dict[str, Any], kind: mx.Dtype) -> Any:
    """mlx-vlm's module of a tower; its weights take no memory."""
    from mlx_vlm.utils import get_model_and_args

    module, _ = get_model_and_args(config=dict(config))
    model = module.VisionModel(module.VisionConfig.from_dict(dict(config["vision_config"])))
    model.update(tree_map(lambda value: mx.zeros(value.shape, kind), model.parameters()))
    return model


def _inputs(config: Mapping[str, Any], picture: PictureTokens, kind: mx.Dtype) -> tuple[mx.array, dict[str, Any]]:
    """A picture as the processor makes it, and what else the tower is called with."""
    seen = config["vision_config"]
    patch = seen["patch_size"]
    if "temporal_patch_size" in seen:
        values = _CHANNELS * seen["temporal_patch_size"] * patch**2
        return mx.zeros((picture.patches, values), kind), {"grid_thw": mx.array([[1, *picture.grid]])}
    height, width = (patch * count for count in picture.grid)
    return mx.zeros((picture.tiles, height, width, _CHANNELS), kind), {"output_hidden_states": True}

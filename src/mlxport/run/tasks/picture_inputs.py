"""Pictures as a ported model reads them: by the processor that the original's folder describes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxport.errors import SourceError
from mlxport.run.media.extras import needed
from mlxport.run.media.pictures import read_picture
from mlxport.run.tasks.described import load_described
from mlxport.run.tasks.pipeline import Pipeline
from mlxport.run.tasks.port_call import call_port
from mlxport.run.tasks.timm_pictures import timm_pictures
from mlxport.source.jsonfile import read_object
from mlxport.source.timm_config import is_timm

__all__ = ["PicturePipeline", "example_pictures", "load_image_processor"]


def load_image_processor(folder: Path) -> Any:
    """Transformers' image processor of a folder, in the form that needs no torch; timm's where its config says how.

    Raises:
        SourceError: The folder describes none, or it does not load.
    """
    needed("PIL.Image", "vision", "reading a picture")
    config = read_object(folder / "config.json", SourceError, unique=False)
    if is_timm(config):
        return timm_pictures(config["pretrained_cfg"], f"{folder}/config.json: pretrained_cfg")
    from transformers import AutoImageProcessor

    def load() -> Any:
        return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False, local_files_only=True)

    return load_described(folder, "the image processor", "pictures are prepared", load)


def example_pictures() -> list[Any]:
    """Pictures of three shapes, drawn: smooth colours, edges, texture."""
    image_module = needed("PIL.Image", "vision", "making a picture")
    made = []
    for index, (height, width) in enumerate(((180, 240), (256, 256), (320, 200))):
        y, x = np.mgrid[0:height, 0:width].astype(np.float64)
        waves = np.sin(x / (7 + 5 * index)) * np.cos(y / (11 - 2 * index))
        disc = (x - width / 2) ** 2 + (y - height / 3) ** 2 < (min(height, width) / 4) ** 2
        red, green, blue = 255 * x / width, 127 + 120 * waves, 255 * y / height
        pixels = np.stack([np.where(disc, 230, red), green, np.where(disc, 40, blue)], -1)
        made.append(image_module.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return made


class PicturePipeline(Pipeline):
    """Of a port that reads pictures."""

    reads = "picture"

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        super().__init__(folder, trust_remote_code=trust_remote_code)
        self.processor = load_image_processor(folder)

    def computed(self, inputs: Sequence[Any], size: int) -> Iterator[Mapping[str, mx.array]]:
        """The model's outputs for pictures, batch by batch; each file is read when its turn comes."""
        for part in self.batched(len(inputs), size):
            read = [read_picture(given) for given in inputs[part]]
            made = self.processor(images=read, return_tensors="np")
            yield call_port(
                self.model, made, reads=self.reads, refused=f"{self.folder.name} does not take this picture",
                hint="convert it again with the size that its processor makes", supplied={},
            )  # fmt: skip

    def examples(self) -> list[Any]:
        """Drawn pictures."""
        return example_pictures()

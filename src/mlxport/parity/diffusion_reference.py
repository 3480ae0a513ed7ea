"""What a pipeline of diffusers makes of a prompt and noise, in torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mlxport.layouts.generated.diffusers_library import needed_diffusers
from mlxport.run.tasks.text_to_image import DrawnExample
from mlxport.source.diffusers_folder import list_pipeline, pipeline_config
from mlxport.types import Checkpoint

__all__ = ["original_pipeline"]


def original_pipeline(checkpoint: Checkpoint) -> Callable[[DrawnExample], dict[str, Any]]:
    """The original, called with an example: ``latents`` after each step, ``picture`` from 0 to 1, float32."""
    diffusers = needed_diffusers(checkpoint.location)
    _, files = pipeline_config(checkpoint.root, list_pipeline(checkpoint.root))
    variant = next((item.variant for item in files if item.variant), None)
    plain = {} if "XL" in str(checkpoint.config["model_type"]) else {"safety_checker": None}
    diffusers.utils.logging.disable_progress_bar()
    pipe = diffusers.DiffusionPipeline.from_pretrained(
        str(checkpoint.root), dtype=torch.float32, variant=variant, local_files_only=True,
        trust_remote_code=False, **plain,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    usual = pipe.scheduler.config

    def drawn(example: DrawnExample) -> dict[str, Any]:
        pipe.scheduler = getattr(diffusers, example.original).from_config(usual)
        noise, seen = torch.from_numpy(example.noise), list[Any]()

        def note(pipe: Any, index: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
            seen.append(given["latents"].to(torch.float32).numpy().copy())
            return given

        rows, columns = example.noise.shape[-2:]
        with torch.inference_mode(), _drawing(pipe.scheduler, noise):
            made = pipe(
                example.prompt, num_inference_steps=example.steps, guidance_scale=example.cfg, latents=noise.clone(),
                height=rows * example.factor, width=columns * example.factor, output_type="np",
                callback_on_step_end=note,
            )  # fmt: skip
        return {"latents": seen, "picture": np.asarray(made.images[0], np.float32)}

    return drawn


@contextmanager
def _drawing(scheduler: Any, noise: torch.Tensor) -> Iterator[None]:
    """Let a scheduler that draws noise draw this."""
    module, name = sys.modules[type(scheduler).__module__], "randn_tensor"
    usual = getattr(module, name, None)
    if usual is None:
        yield
        return
    setattr(module, name, lambda *args, **given: noise.clone())
    try:
        yield
    finally:
        setattr(module, name, usual)

"""The loop of diffusion: noise in, a prompt beside it, pictures out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlxport.errors import NumericsError, UsageError
from mlxport.run.diffusion.pipeline_parts import PipelineParts
from mlxport.run.diffusion.prompts import PromptReader
from mlxport.run.diffusion.samplers import Sampler, make_sampler, usual_sampler

__all__ = ["PictureMaker", "Request"]

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What pictures are wanted.

    Attributes:
        prompt: What is to be seen.
        negative_prompt: What is not; None for nothing in particular.
        seed: Of the noise: that of the picture at ``i`` is ``seed + i``'s.
        count: Of pictures.
        height: In pixels.
        width: In pixels.
        steps: How often the model is asked, less where a picture is given.
        cfg: How much the prompt counts beyond what is seen without it; 1 and less asks with it alone.
        sampler: One of ``SAMPLERS``.
        picture: float32 [3, height, width] from -1 to 1, to start from; None for noise.
        strength: How much of a given picture is taken away before, up to 1.
    """

    prompt: str
    negative_prompt: str | None = None
    seed: int
    count: int = 1
    height: int
    width: int
    steps: int
    cfg: float
    sampler: str
    picture: Floats | None = None
    strength: float = 0.8


class PictureMaker:
    """A folder of a pipeline, in parts.

    Attributes:
        parts: Its parts.
        prompts: Its text encoders.
        factor: Pixels of a latent, along a side.
        multiple: What heights and widths are multiples of.
        usual: Height and width that it was trained for.
        channels: Of latents.
        sampler: The name of the one that the folder's scheduler is.
    """

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        self.parts = PipelineParts(folder, trust_remote_code=trust_remote_code)
        self.prompts = PromptReader(self.parts)
        vae, unet = self.parts.component("vae"), self.parts.component("unet")
        self.factor = 2 ** (len(vae["block_out_channels"]) - 1)
        self.multiple = self.factor * 2 ** (len(unet["block_out_channels"]) - 1)
        size = unet["sample_size"]
        height, width = size if isinstance(size, list) else (size, size)
        self.usual = int(height) * self.factor, int(width) * self.factor
        self.scheduler: Mapping[str, Any] = self.parts.config["scheduler"]
        self.sampler = usual_sampler(self.scheduler)
        self.channels = int(unet["in_channels"])
        if self.channels != int(vae["latent_channels"]):
            what = f"{folder}: unet reads {self.channels} channels and vae gives {vae['latent_channels']}"
            raise UsageError(f"{what}: a model that fills pictures in", hint="use one that makes pictures of texts")

    def check_size(self, height: int, width: int) -> None:
        """Refuse a size that the model does not give.

        Raises:
            UsageError: Names the nearest ones.
        """
        for side in (height, width):
            if side < self.multiple or side % self.multiple:
                below = max(side // self.multiple * self.multiple, self.multiple)
                found = " and ".join(str(each) for each in dict.fromkeys((below, below + self.multiple)))
                what = f"--size {height}x{width}: {side} is not a multiple of {self.multiple}"
                raise UsageError(
                    what, hint=f"{found} are" if side >= self.multiple else f"{self.multiple} is the least"
                )

    def make(self, request: Request, on_step: Callable[[int], object] = lambda done: None) -> Pixels:
        """The pictures, [count, height, width, 3].

        Args:
            request: What is wanted.
            on_step: Called with 1 after each step of each picture.

        Raises:
            NumericsError: What is computed is not a number.
        """
        conditions = self.prompts.read(request.prompt, request.negative_prompt)
        starts = None if request.picture is None else self._encoded(request.picture)
        with self.parts.using("unet"):
            seeds = range(request.seed, request.seed + request.count)
            found = [self._one(request, seed, conditions, starts, on_step) for seed in seeds]
        with self.parts.using("vae_decode"):
            return np.stack([self.pixels(each) for each in found])

    def _one(
        self,
        request: Request,
        seed: int,
        conditions: Mapping[str, mx.array],
        starts: Mapping[str, mx.array] | None,
        on_step: Callable[[int], object],
    ) -> mx.array:
        """A picture's latents; ``starts`` is what ``vae_encode`` gives of the picture to start from."""
        sampler = make_sampler(request.sampler, self.scheduler, request.steps)
        generator = np.random.default_rng(seed)
        shape = (1, self.channels, request.height // self.factor, request.width // self.factor)

        def draw() -> mx.array:
            return mx.array(generator.standard_normal(shape, dtype=np.float32))

        start, latents = 0, draw()
        if starts is None:
            latents = latents * sampler.scale
        else:
            start = request.steps - min(int(request.steps * request.strength), request.steps)
            given = starts["mean"] + starts["std"] * draw()
            latents = sampler.noised(given, latents, start)
        return self.denoised(latents, conditions, sampler, request.cfg, start=start, draw=draw, on_step=on_step)

    def denoised(
        self,
        latents: mx.array,
        conditions: Mapping[str, mx.array],
        sampler: Sampler,
        cfg: float,
        *,
        start: int = 0,
        draw: Callable[[], mx.array] | None = None,
        on_step: Callable[[int], object] = lambda done: None,
        on_latents: Callable[[mx.array], object] = lambda latents: None,
    ) -> mx.array:
        """Latents without noise, [1, channels, rows, columns], float32.

        Args:
            latents: With noise, as much as the sampler has at ``start``.
            conditions: What ``PromptReader.read`` gives.
            sampler: Of so many steps as are wanted.
            cfg: As of ``Request``.
            start: The first step.
            draw: Gives noise, where the sampler draws.
            on_step: Called with 1 after each step.
            on_latents: Called with the latents after each step.
        """
        guided = cfg > 1
        given = {**conditions, **self._sizes(latents, conditions)}
        given = given if guided else {name: value[1:] for name, value in given.items()}
        with self.parts.using("unet") as unet:
            for index in range(start, len(sampler.timesteps)):
                seen = mx.repeat(sampler.seen(latents, index), 2 if guided else 1, axis=0)
                states = given["encoder_hidden_states"]
                times = mx.full((len(seen),), sampler.timesteps[index], dtype=mx.float32)
                said = unet(sample=seen.astype(states.dtype), timestep=times, **given).astype(mx.float32)
                if guided:
                    without, with_prompt = said[:1], said[1:]
                    said = without + cfg * (with_prompt - without)
                noise = draw() if sampler.draws and draw is not None else None
                latents = sampler.step(said, latents, index, noise)
                mx.eval(latents)
                on_latents(latents)
                on_step(1)
        if not bool(mx.isfinite(latents).all()):
            hint = "convert the original again with --dtype bfloat16, or float32"
            raise NumericsError("unet gives what is not a number (NaN)", hint=hint)
        return latents

    def followed(self, prompt: str, noise: Floats, sampler: str, steps: int, cfg: float) -> dict[str, Any]:
        """A picture and its way: ``latents`` after each step, ``picture`` [height, width, 3] from 0 to 1.

        Args:
            prompt: The prompt.
            noise: [1, channels, rows, columns], of deviation 1; a sampler that draws is given it at each step too.
            sampler: One of ``SAMPLERS``.
            steps: How often the model is asked.
            cfg: As of ``Request``.
        """
        seen: list[Floats] = []
        made, begin = make_sampler(sampler, self.scheduler, steps), mx.array(noise)
        latents = self.denoised(
            begin * made.scale, self.prompts.read(prompt, None), made, cfg, draw=lambda: begin,
            on_latents=lambda now: seen.append(np.array(now)),
        )  # fmt: skip
        return {"latents": seen, "picture": self.decoded(latents)}

    def _sizes(self, latents: mx.array, conditions: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """What SDXL is told of the size of a picture: as it was, where it is cut from, as it is wanted."""
        if "text_embeds" not in conditions:
            return {}
        height, width = (side * self.factor for side in latents.shape[-2:])
        row = mx.array([height, width, 0, 0, height, width], dtype=conditions["text_embeds"].dtype)
        return {"time_ids": mx.stack([row, row])}

    def _encoded(self, picture: Floats) -> dict[str, mx.array]:
        with self.parts.using("vae_encode") as encode:
            made = dict(encode(pixel_values=mx.array(picture[None])))
            mx.eval(made)
        return made

    def pixels(self, latents: mx.array) -> Pixels:
        """The picture of latents [1, …], [height, width, 3].

        Raises:
            NumericsError: What is computed is not a number.
        """
        return np.asarray((self.decoded(latents) * 255).round(), np.uint8)

    def decoded(self, latents: mx.array) -> Floats:
        """The same from 0 to 1."""
        with self.parts.using("vae_decode") as decode:
            found = decode(latents=latents)
            mx.eval(found)
        picture = np.array(found.astype(mx.float32))[0].transpose(1, 2, 0)
        if not np.isfinite(picture).all():
            hint = "convert the original again: mlxport keeps the VAE in float32, in which it does not overflow"
            raise NumericsError("vae_decode gives what is not a number (NaN): a VAE in float16?", hint=hint)
        return np.asarray(np.clip(picture / 2 + 0.5, 0, 1), np.float32)

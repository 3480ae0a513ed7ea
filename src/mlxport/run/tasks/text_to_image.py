"""Pictures of prompts."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlxport.errors import UsageError
from mlxport.output.atomic_files import replacing
from mlxport.run.diffusion.picture_maker import PictureMaker, Request
from mlxport.run.diffusion.samplers import make_sampler
from mlxport.run.media.picture_files import PICTURE_FILES, fitted, grid, picture_file
from mlxport.run.media.pictures import read_picture
from mlxport.run.tasks.pipeline import Difference, Pipeline
from mlxport.run.tasks.task_options import PictureOptions
from mlxport.run.tasks.written_files import target_file

__all__ = ["DrawnExample", "TextToImage"]

_CFG = {"StableDiffusionXLPipeline": 5.0}
_USUAL_CFG = 7.5
_PROMPTS = ("a red cube on a table", "an astronaut rides a horse")
_COMPARED_STEPS = 3


@dataclass(frozen=True)
class DrawnExample:
    """What a model is compared with its original on: a prompt, and the noise to begin with.

    Attributes:
        prompt: The prompt.
        noise: float32 [1, channels, rows, columns], of deviation 1.
        steps: Number of steps.
        cfg: How much the prompt counts.
        sampler: Name of the sampler.
        original: The class of diffusers that is the same.
        factor: Pixels of a latent, along a side.
    """

    prompt: str
    noise: Any
    steps: int
    cfg: float
    sampler: str
    original: str
    factor: int


class TextToImage(Pipeline):
    """``text-to-image``: pictures of each prompt."""

    task = "text-to-image"
    reads = "text"
    tokenizes = False  # with tokenizers in folders of their own
    options = PictureOptions
    also = "--output picture.png"
    also_in_python = ', output="picture.png"'
    returns = "a dict: `images` uint8\n[count, height, width, 3], and what made them"

    def _model(self) -> Any:
        self.maker = PictureMaker(self.folder, trust_remote_code=self.trust_remote_code)
        return self.maker

    def run(self, inputs: Sequence[Any], options: PictureOptions, on_done: Callable[[int], object]) -> list[Any]:
        """``{"images": …, "prompt": …, "seed": …}`` for each prompt, with everything that made them."""
        self._check_file(options)
        requests = [self._request(str(prompt), options) for prompt in inputs]
        self.maker.parts.one_at_a_time = options.low_memory
        results = []
        for request in requests:
            with _steps_shown(self.shows and len(inputs) == 1, request) as on_step:
                pixels = self.maker.make(request, on_step)
            if self.maker.prompts.cut:
                print(f"warning: beyond what the model reads: {self.maker.prompts.cut!r}", file=sys.stderr)
            results.append({"images": pixels, **_made_by(request, options)})
            on_done(1)
        return results

    def _request(self, prompt: str, options: PictureOptions) -> Request:
        height, width = self._size(options.size)
        self.maker.check_size(height, width)
        name = options.scheduler or self.maker.sampler
        make_sampler(name, self.maker.scheduler, options.steps)  # refused before anything is computed
        picture = self._picture(options.image, height, width)
        if picture is not None and not int(options.steps * options.strength):
            what = f"--strength {options.strength:g} of --steps {options.steps} is less than a step"
            raise UsageError(what, hint="give more of either")
        return Request(
            prompt=prompt, negative_prompt=options.negative_prompt, count=options.n_images, height=height, width=width,
            seed=secrets.randbelow(2**32) if options.seed is None else options.seed, steps=options.steps,
            cfg=self._cfg(options), sampler=name, picture=picture, strength=options.strength,
        )  # fmt: skip

    @staticmethod
    def _picture(given: Any, height: int, width: int) -> Any:
        """The picture to start from, as ``vae_encode`` reads it; None without one."""
        pictures = given if isinstance(given, list | tuple) else [] if given is None else [given]
        if len(pictures) > 1:
            raise UsageError(f"--image: {len(pictures)} pictures, and one can be started from", hint="give one")
        return fitted(read_picture(pictures[0]), height, width) if pictures else None

    def _cfg(self, options: PictureOptions) -> float:
        usual = _CFG.get(str(self.config.get("model_type")), _USUAL_CFG)
        return usual if options.cfg is None else options.cfg

    def _size(self, given: str | None) -> tuple[int, int]:
        if given is None:
            return self.maker.usual
        height, _, width = given.partition("x")
        return int(height), int(width or height)

    def _check_file(self, options: PictureOptions) -> None:
        if options.output is not None:
            target_file("--output", options.output, "picture.png", tuple(PICTURE_FILES))
        if options.n_rows > options.n_images:
            what = f"--n-rows {options.n_rows} and --n-images {options.n_images}: more rows than pictures"
            raise UsageError(what, hint="give fewer rows")

    def write(self, results: Sequence[Any], options: PictureOptions) -> list[str]:
        """One file: the pictures of all prompts, each prompt's in ``n_rows`` rows."""
        if options.output is None:
            return []
        path = target_file("--output", options.output, "picture.png", tuple(PICTURE_FILES))
        with replacing(path) as file:
            file.write(_file(results, path.suffix.lower()))
        return [options.output]

    def target_needed(self, options: PictureOptions) -> str:
        """A file for the pictures."""
        return "" if options.output is not None else self.also

    def as_bytes(self, result: Any) -> bytes:
        """A PNG."""
        return _file([result])

    def plain(self, result: Any) -> Any:
        """What made the pictures, and their size; pixels are for files."""
        return {name: value for name, value in result.items() if name != "images"}

    def lines(self, inputs: Sequence[Any], results: Sequence[Any], options: Any) -> Iterator[str]:
        """What made each."""
        for result in results:
            yield _parameters(result)

    def examples(self) -> list[Any]:
        """Two prompts at the smallest size that has room for something."""
        maker, name = self.maker, self.maker.sampler
        rows = 2 * maker.multiple // maker.factor
        sampler = make_sampler(name, maker.scheduler, _COMPARED_STEPS)
        return [
            DrawnExample(
                prompt,
                np.random.default_rng(index).standard_normal((1, maker.channels, rows, rows), dtype=np.float32),
                _COMPARED_STEPS, self._cfg(PictureOptions()), name, sampler.original, maker.factor,
            )
            for index, prompt in enumerate(_PROMPTS)
        ]  # fmt: skip

    def answer(self, example: DrawnExample) -> Any:
        """The picture, and the latents after each step."""
        return self.maker.followed(example.prompt, example.noise, example.sampler, example.steps, example.cfg)

    def compare(self, ours: Any, theirs: Any) -> Difference:
        """Latents after each step, and the picture."""
        pairs = [*zip(ours["latents"], theirs["latents"], strict=True), (ours["picture"], theirs["picture"])]
        errors = [float(np.abs(mine - other).max() / max(np.abs(other).max(), 1e-12)) for mine, other in pairs]
        return Difference("latents of each step, and pictures,", max(errors))


@contextmanager
def _steps_shown(shown: bool, request: Request) -> Iterator[Callable[[int], object]]:
    """A bar of all steps of all pictures."""
    if not shown:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    taken = request.steps if request.picture is None else int(request.steps * request.strength)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("text-to-image", total=taken * request.count)
        yield lambda done: bar.advance(task, done)


def _made_by(request: Request, options: PictureOptions) -> dict[str, Any]:
    made = {
        "prompt": request.prompt, "negative_prompt": request.negative_prompt, "seed": request.seed,
        "steps": request.steps, "cfg": request.cfg, "scheduler": request.sampler, "height": request.height,
        "width": request.width, "n_rows": options.n_rows,
    }  # fmt: skip
    if request.picture is not None:
        made |= {"strength": request.strength}
    return made


def _file(results: Sequence[Mapping[str, Any]], ending: str = ".png") -> bytes:
    rows = [grid(result["images"], result["n_rows"]) for result in results]
    said = {"parameters": "\n\n".join(map(_parameters, results)), "mlxport": json.dumps([
        {name: value for name, value in result.items() if name != "images"} for result in results
    ])}  # fmt: skip
    return picture_file(np.concatenate(rows), ending, said)


def _parameters(result: Mapping[str, Any]) -> str:
    """What made a picture, in the words in which other programs look for it."""
    lines = [result["prompt"]]
    if result["negative_prompt"]:
        lines.append(f"Negative prompt: {result['negative_prompt']}")
    said = {
        "Steps": result["steps"], "Sampler": result["scheduler"], "CFG scale": result["cfg"], "Seed": result["seed"],
        "Size": f"{result['width']}x{result['height']}",
    }  # fmt: skip
    if "strength" in result:
        said["Denoising strength"] = result["strength"]
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in said.items())])


PIPELINE = TextToImage

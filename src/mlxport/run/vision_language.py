"""Models of pictures and text, run by mlx-vlm: opened from a folder, asked with the folder's own chat template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxport.errors import MlxportError, SourceError, UsageError, WeightsError
from mlxport.layouts.mlx_vlm.families import family_of
from mlxport.run.media.extras import needed
from mlxport.run.picture_attention import hidden_states
from mlxport.source.jsonfile import read_object
from mlxport.source.tokenizer_loading import reason, refusing
from mlxport.source.written_code import refuse_foreign_source

__all__ = ["EXTRA", "VisionLanguage", "load_vision_language"]

EXTRA = "vlm"
"""The extra of mlxport that brings mlx-vlm."""

_OF_TEXTS = ("padding", "padding_side", "add_special_tokens")


@dataclass(frozen=True)
class VisionLanguage:
    """A model that is ready to be asked.

    Attributes:
        folder: Where it lies.
        config: Its config.json.
        model: mlx-vlm's module.
        processor: mlx-vlm's processor: tokenizer and what prepares pictures.
    """

    folder: Path
    config: dict[str, Any]
    model: Any
    processor: Any

    def prompt(self, text: str, pictures: int, system: str | None = None) -> str:
        """A message by the chat template, with a place for each picture before its text.

        Args:
            text: What is asked.
            pictures: How many pictures it is about.
            system: What comes before the message, None for what the template says.
        """
        from mlx_vlm.prompt_utils import apply_chat_template

        messages: Any = text
        if system is not None:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]

        def failed(error: BaseException) -> MlxportError:
            hint = "copy chat_template.jinja or chat_template.json of the original model into the folder"
            return SourceError(f"the chat template of {self.folder} cannot be applied: {reason(error)}", hint=hint)

        with refusing(failed):
            return str(apply_chat_template(self.processor, self.config, messages, num_images=pictures))

    def inputs(self, prompt: str, pictures: Sequence[Any]) -> dict[str, Any]:
        """What the model is called with: tokens, and of pictures what the processor makes of them.

        Args:
            prompt: As ``prompt`` makes it.
            pictures: ``PIL.Image.Image`` of mode RGB.

        Raises:
            UsageError: Pictures and prompt do not fit, or a picture is of a size that cannot be read.
        """
        from mlx_vlm.utils import prepare_inputs, should_add_special_tokens

        def failed(error: BaseException) -> MlxportError:
            hint = "give pictures of a usual shape, and a place for each in the prompt, as the chat template writes it"
            return UsageError(f"pictures and prompt cannot be prepared: {reason(error)}", hint=hint)

        with refusing(failed):
            made: dict[str, Any] = prepare_inputs(
                self.processor,
                images=list(pictures) or None,
                prompts=prompt,
                image_token_index=getattr(self.model.config, "image_token_index", None),
                add_special_tokens=should_add_special_tokens(self.model.config.model_type, self.processor),
            )
        places = sum(int((made["input_ids"] == token).sum()) for token in self._picture_tokens())
        if pictures and not places:
            raise failed(ValueError("the prompt has no place for a picture"))
        return made

    def _picture_tokens(self) -> list[int]:
        """What stands for a picture among the tokens."""
        found = (self.config.get(name) for name in ("image_token_id", "image_token_index"))
        return [token for token in found if isinstance(token, int)][:1]

    def logits(self, inputs: Mapping[str, Any], *, one_way: bool = False) -> Any:
        """What is computed for every token before an answer, as ``stream`` computes it.

        Args:
            inputs: As ``inputs`` makes them.
            one_way: As ``mlx_vlm.generate`` computes it, even where ``both_ways`` says that the original does not.
        """
        from mlx_vlm.models.cache import make_prompt_cache

        named, model = _renamed(inputs), self.model.language_model
        cache = make_prompt_cache(model)
        tokens, features = self._embedded(named)
        if self.both_ways(named) and not one_way:
            return model.lm_head(self._read(tokens, features["inputs_embeds"], cache))
        more = {name: value for name, value in named.items() if name not in ("input_ids", "pixel_values", "mask")}
        return model(tokens, cache=cache, **{**more, **features}).logits

    def both_ways(self, inputs: Mapping[str, Any]) -> bool:
        """Whether these have pictures that are to be read in both directions, which mlx-vlm reads in one."""
        family = family_of(self.config)
        return family is not None and family.both_ways and inputs.get("pixel_values") is not None

    def _embedded(self, named: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Tokens, and what the language model is given with them."""
        found = self.model.get_input_embeddings(**named).to_dict()
        return named["input_ids"], {name: value for name, value in found.items() if value is not None}

    def _read(self, tokens: Any, embeddings: Any, cache: Any) -> Any:
        return hidden_states(self.model.language_model, embeddings, tokens, self._picture_tokens()[0], cache)

    def stream(self, inputs: dict[str, Any], **settings: Any) -> Iterator[Any]:
        """Pieces of the answer, as ``mlx_vlm.stream_generate`` yields them.

        Args:
            inputs: As ``inputs`` makes them.
            **settings: Of ``mlx_vlm.stream_generate``.
        """
        from mlx_vlm import stream_generate

        named = _renamed(inputs)
        if self.both_ways(named):
            named = self._begun(named)
        yield from stream_generate(self.model, self.processor, "", **named, **settings)

    def _begun(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """The last token, and a cache of what is before it, in which pictures are read in both directions."""
        from mlx_vlm.models.cache import make_prompt_cache

        cache = make_prompt_cache(self.model.language_model)
        tokens, features = self._embedded(named)
        self._read(tokens[:, :-1], features["inputs_embeds"][:, :-1], cache)
        return {"input_ids": tokens[:, -1:], "mask": named["mask"][:, -1:], "prompt_cache": cache}


class _PicturesAlone:
    """An image processor that is not told how to pad a text: some of mlx-vlm's processors say it, and it is refused."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._processor(*args, **{name: value for name, value in options.items() if name not in _OF_TEXTS})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)


def _renamed(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs as mlx-vlm's models name them."""
    return {("mask" if name == "attention_mask" else name): value for name, value in inputs.items()}


def load_vision_language(folder: Path, *, trust_remote_code: bool = False) -> VisionLanguage:
    """Open a folder that mlx-vlm loads.

    Args:
        folder: The model's.
        trust_remote_code: Run source of the folder that this installation did not write.

    Raises:
        UsageError: mlx-vlm is not installed.
        WeightsError: It does not load the folder.
        UnsafeError: The folder carries code that is not trusted.
    """
    config = read_object(folder / "config.json", SourceError, unique=False)
    refuse_foreign_source(folder, config, trust_remote_code)
    utils = needed("mlx_vlm.utils", EXTRA, "a model of pictures and text")

    def failed(error: BaseException) -> MlxportError:
        hint = "convert or fetch the model again; pip install -U mlx-vlm may know it"
        return WeightsError(f"{folder}: mlx-vlm cannot load it: {reason(error)}", hint=hint)

    with refusing(failed):
        model, processor = utils.load(str(folder), lazy=True)
    if hasattr(processor, "image_processor"):
        processor.image_processor = _PicturesAlone(processor.image_processor)
    return VisionLanguage(folder, config, model, processor)

"""What transformers writes with a tiny model of an encoder and a decoder, and what the model's port writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["differing", "free", "sources", "written_texts"]

START = 2
VARIED = {"no_repeat_ngram_size": 2, "suppress_tokens": [START]}
SOURCES = (11, 6)  # tokens that are read


def sources(model: Any) -> list[list[int]]:
    """Texts for the encoder to read."""
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(5, vocabulary - 1, (count,), generator=generator).tolist() for count in SOURCES]


def written_texts(model: Any, source: list[int], lengths: tuple[int, ...], count: int) -> list[Any]:
    """Decoder's texts of some lengths and what transformers writes after them, with its logits of the whole."""
    from mlxport.parity.generation_checks import Continuation

    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(3)
    texts = []
    for length in lengths:
        prompt = torch.randint(5, vocabulary - 1, (1, length), generator=generator)
        prompt[0, 0] = START
        written = _generated(model, source, count, decoder_input_ids=prompt)[:, :-1]
        with torch.no_grad():
            whole = model(input_ids=torch.tensor([source]), decoder_input_ids=written, use_cache=False).logits[0]
        texts.append(Continuation(written[0].tolist(), length, whole.float().numpy()))
    return texts


def free(model: Any) -> None:
    """Let ``model``, by its settings of generation, write no token twice in a row, and never end."""
    model.generation_config = _rules(**VARIED)


def differing(model: Any, folder: Path, count: int) -> str:
    """Where the tokens of ``mlxport generate`` or of mlx-lm's ``generate_step`` are not those of transformers."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    import mlxport

    loaded = mlxport.run.load(folder)
    for source in sources(model):
        cache = loaded.model.make_cache()
        loaded.model.encode(mx.array([source]), cache)
        steps = generate_step(mx.array([START]), loaded.model, max_tokens=count, prompt_cache=cache)
        text = " ".join(f"w{token}" for token in source)
        result = mlxport.generate(loaded, text, max_tokens=count, ignore_chat_template=True)
        pairs = {
            "generate_step": ([int(token) for token, _ in steps], _generated(model, source, count)),
            "generate": (list(result.tokens), _generated(model, source, count, VARIED)),
        }
        for name, (tokens, made) in pairs.items():
            wanted = made[0, 1:].tolist()
            if tokens != wanted:
                place = next((i for i, pair in enumerate(zip(tokens, wanted, strict=False)) if pair[0] != pair[1]), 0)
                return f"{name} writes {tokens[place:][:4]} … from token {place + 1} on, not {wanted[place:][:4]} …"
    return ""


def _generated(model: Any, source: list[int], count: int, rules: Mapping[str, Any] | None = None, **given: Any) -> Any:
    ids = torch.tensor([source])
    model.generation_config = _rules(  # what a call's settings leave out is taken from the model's
        max_new_tokens=count, min_new_tokens=count, **(rules or {})
    )
    with torch.inference_mode():
        return model.generate(ids, attention_mask=torch.ones_like(ids), **given)


def _rules(**more: Any) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(decoder_start_token_id=START, pad_token_id=1, use_cache=True, do_sample=False, **more)

"""Text in, text out, on ``mlx_lm.stream_generate``."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

from mlxport.errors import UsageError, WeightsError
from mlxport.model_config import ModelConfig
from mlxport.run.generation_result import GenerationResult, peak_rss, reset_peak_memory
from mlxport.run.kv import KVQuant, check_model, chosen_kv, prompt_cache
from mlxport.run.languages import reading_in, token_of
from mlxport.run.load import LoadedModel, check_ids, load
from mlxport.run.sampling import MAX_TOKENS, Sampling
from mlxport.source.tokenizer_loading import encoded, reason, refusing, rendered

if TYPE_CHECKING:
    from mlxport.run.sequence_rules import SequenceRules

__all__ = ["generate", "read_prompt", "stream"]


def generate(
    path: str | os.PathLike[str] | LoadedModel,
    prompt: str,
    *,
    max_tokens: int | None = None,
    temp: float = 0.0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    top_k: int = 0,
    seed: int | None = None,
    system_prompt: str | None = None,
    ignore_chat_template: bool = False,
    num_beams: int | None = None,
    source_lang: str | None = None,
    target_lang: str | None = None,
    truncate: bool = False,
    kv_bits: int | str | None = None,
    kv_group_size: int | None = None,
    quantized_kv_start: int | None = None,
    trust_remote_code: bool = False,
    on_text: Callable[[str], object] | None = None,
    on_warning: Callable[[str], object] | None = None,
) -> GenerationResult:
    """Continue or answer `prompt`; a model with an encoder reads it, and writes what follows from it.

    The tokenizer's chat template is applied where it has one, as mlx-lm does.

    Args:
        path: Folder of an MLX model, a repository id, or what :func:`mlxport.run.load` returned.
        prompt: The message, or with ``ignore_chat_template`` the text to continue.
        max_tokens: Most tokens to generate; None is 256, or what a model with an encoder has in generation_config.json.
        temp: Temperature; 0 is greedy.
        top_p: Probability mass to sample from, in (0, 1].
        min_p: Least probability relative to the most likely token's.
        top_k: Number of most likely tokens to sample from; 0 is off.
        seed: Makes sampling reproducible.
        system_prompt: Put before the message by the chat template.
        ignore_chat_template: Use the prompt as it is.
        num_beams: Texts that a model with an encoder writes beside each other, to give the likeliest; None is what its
            generation_config.json says, and one where it samples.
        source_lang: Language that the prompt is in, as the tokenizer of a model with an encoder calls it.
        target_lang: Language to write.
        truncate: Cut a prompt that is longer than an encoder reads, or was made for.
        kv_bits: Bits of a quantized key-value cache, or "none"; None is what the folder was converted for.
        kv_group_size: Its group size; None is what the folder was converted for, or 64.
        quantized_kv_start: Tokens from which on it is quantized; None is the folder's, or mlx-lm's own number.
        trust_remote_code: Run code that the folder carries.
        on_text: Called with each piece of text as it comes.
        on_warning: Called with each warning; by default :func:`warnings.warn`.

    Raises:
        UsageError: The prompt is empty, an option is out of range, the model cannot have such a cache, or its encoder
            reads no text of this length.
        SourceError: The folder cannot be used; see :func:`mlxport.run.load`.
    """
    from mlxport.transform.cpu_experts import remarked

    sampling = Sampling(MAX_TOKENS if max_tokens is None else max_tokens, temp, top_p, min_p, top_k, seed)
    if not prompt.strip():
        raise UsageError("the prompt is empty", hint='pass --prompt "Once upon a time", or --prompt - to read stdin')
    reset_peak_memory()
    loaded = path if isinstance(path, LoadedModel) else load(path, trust_remote_code=trust_remote_code)
    reads = hasattr(loaded.model, "encode")
    if not reads and (num_beams, source_lang, target_lang, truncate) != (None, None, None, False):
        raise UsageError(
            "--num-beams, --source-lang, --target-lang and --truncate: for models with an encoder",
            hint="leave them out",
        )
    warn = on_warning or _warn
    with reading_in(loaded.tokenizer._tokenizer, source_lang):
        text, whole = _as_given(loaded.tokenizer, prompt, system_prompt, ignore_chat_template)
        if reads:
            tokens = _read_as_a_whole(loaded, text, truncate, warn, add_special_tokens=whole)
        else:
            tokens = encoded(loaded.tokenizer, text, add_special_tokens=whole)
    kv = usable_kv(loaded, kv_bits, kv_group_size, quantized_kv_start, warn)
    if (limit := loaded.context_length) is not None and not reads and len(tokens) > limit:
        warn(f"the prompt has {len(tokens)} tokens, the model was made for {limit}: expect a poor answer")
    with remarked(warn):
        if not reads:
            made = stream(loaded, tokens, sampling, kv=kv, on_text=on_text)
            if limit is not None and len(tokens) <= limit < len(tokens) + len(made.tokens):
                warn(f"prompt and answer are longer than the {limit} tokens that the model was made for")
            return made
        from mlxport.run.sequences import rules_of

        given = {} if target_lang is None else {"forced_bos_token_id": _first_token(loaded, target_lang)}
        rules = rules_of(loaded, max_tokens, given, warn)
        sampling = replace(sampling, max_tokens=rules.max_tokens)
        return _written(loaded, tokens, rules, sampling, num_beams, kv, on_text, warn)


def _first_token(loaded: LoadedModel, language: str) -> int:
    return token_of(loaded.tokenizer._tokenizer, language, "--target-lang")


def _written(
    loaded: LoadedModel,
    tokens: Sequence[int],
    rules: SequenceRules,
    sampling: Sampling,
    num_beams: int | None,
    kv: KVQuant | None,
    on_text: Callable[[str], object] | None,
    warn: Callable[[str], object],
) -> GenerationResult:
    """What a decoder writes of the text that its encoder reads."""
    from mlxport.run.sequences import read_source, write_beams

    if num_beams is not None and num_beams < 1:
        raise UsageError(f"--num-beams {num_beams}: expected at least 1", hint="1 follows the likeliest token alone")
    if sampling.temp > 0 and (num_beams or 1) > 1:
        raise UsageError("--num-beams searches, --temp samples", hint="leave one of them out")
    settings = rules.beams(1 if sampling.temp > 0 else num_beams)
    if settings.num_beams > 1 and kv is not None:
        warn(f"a search with {settings.num_beams} beams keeps a plain cache: --num-beams 1 quantizes it")
        kv = None
    read = read_source(loaded, tokens, rules, kv)
    if settings.num_beams > 1:
        return write_beams(loaded, read, rules, settings, on_text)
    made = stream(
        loaded, [read.start], sampling, kv=kv, on_text=on_text, cache=read.cache, logits_processors=rules.processors()
    )
    return replace(made, prompt_tokens=read.tokens, prompt_tps=read.tps)


def usable_kv(
    loaded: LoadedModel,
    bits: int | str | None,
    group_size: int | None,
    start: int | None,
    warn: Callable[[str], object],
) -> KVQuant | None:
    """The quantized cache to generate with, None for a plain one; what was asked for now and stays out is warned of.

    Raises:
        UsageError: Such a setting does not exist.
        QuantizationError: The model cannot have such a cache.
    """
    kv = chosen_kv(loaded.kv, bits, group_size, start)
    if kv is not None:
        remarks = check_model(loaded.model, kv, str(loaded.config.get("model_type")))
        if kv != loaded.kv:  # those of the folder were said when it was converted
            for remark in remarks:
                warn(remark)
    return kv


def read_prompt(prompt: str, stdin: IO[str] | None = None) -> str:
    r"""Read a prompt as ``mlx_lm.generate`` does: ``-`` is stdin, ``\n`` and ``\t`` are a newline and a tab."""
    if prompt == "-":
        return (stdin or sys.stdin).read()
    return prompt.replace("\\n", "\n").replace("\\t", "\t")


def stream(
    loaded: LoadedModel,
    tokens: Sequence[int],
    sampling: Sampling,
    *,
    kv: KVQuant | None = None,
    on_text: Callable[[str], object] | None = None,
    cache: list[Any] | None = None,
    cached_tokens: int = 0,
    catch_interrupt: bool = False,
    logits_processors: Sequence[Callable[[Any, Any], Any]] = (),
) -> GenerationResult:
    """Run mlx-lm's generation on prompt tokens; `cache` is continued in place.

    With ``catch_interrupt`` a Ctrl-C ends the answer, not the program; the cache is then in no defined state.
    """
    import mlx.core as mx
    from mlx_lm import stream_generate

    if not tokens:
        hint = "give another prompt, or check chat template and tokenizer of the model's folder"
        raise UsageError("the prompt makes no tokens", hint=hint)
    check_ids(tokens, loaded.config)
    sampling.seed_random()
    sampler = sampling.sampler(ModelConfig(loaded.config).vocabulary)
    pieces: list[str] = []
    generated: list[int] = []
    last: Any = None
    reason = "interrupted"
    try:
        options = {"max_tokens": sampling.max_tokens, "sampler": sampler, **(kv.options() if kv is not None else {})}
        options["logits_processors"] = list(logits_processors)
        options["prompt_cache"] = prompt_cache(loaded.model, kv) if cache is None else cache
        for last in _running(loaded, stream_generate(loaded.model, loaded.tokenizer, list(tokens), **options)):
            if last.finish_reason != "stop":
                generated.append(int(last.token))
            pieces.append(last.text)
            if on_text is not None and last.text:
                on_text(last.text)
        reason = last.finish_reason
    except KeyboardInterrupt:
        if not catch_interrupt:
            raise
    text = loaded.decode(generated)
    if on_text is not None and (rest := text[sum(map(len, pieces)) :]):
        on_text(rest)  # an interrupt keeps what waited for the next token
    return GenerationResult(
        text=text,
        tokens=tuple(generated),
        prompt_tokens=len(tokens),
        cached_tokens=cached_tokens,
        generation_tokens=last.generation_tokens if last else 0,
        prompt_tps=float(last.prompt_tps) if last else 0.0,
        generation_tps=float(last.generation_tps) if last else 0.0,
        peak_memory=int(mx.get_peak_memory()),
        peak_rss=peak_rss(),
        finish_reason=reason,
        end_token=int(last.token) if reason == "stop" else None,
    )


def _running(loaded: LoadedModel, responses: Iterator[Any]) -> Iterator[Any]:
    """The same responses; where the model cannot be run, an error that says so. What is done with them is not in it."""

    def refusal(error: BaseException) -> WeightsError:
        message = f"{loaded.path}: mlx-lm cannot generate with it: {reason(error)}"
        return WeightsError(message, hint="convert or fetch the model again")

    while True:
        with refusing(refusal):
            response = next(responses, None)
        if response is None:
            return
        yield response


def _as_given(tokenizer: Any, prompt: str, system_prompt: str | None, ignore_chat_template: bool) -> tuple[str, bool]:
    """The text that the model gets, and whether special tokens are to be put around it: a template has its own."""
    templated = tokenizer.has_chat_template and not ignore_chat_template
    if templated:
        messages = [{"role": "system", "content": system_prompt}] if system_prompt is not None else []
        prompt = rendered(tokenizer, [*messages, {"role": "user", "content": prompt}])
    elif system_prompt is not None:
        why = "--ignore-chat-template was given" if tokenizer.has_chat_template else "the tokenizer has none"
        hint = "put the instructions into the prompt"
        raise UsageError(f"a system prompt needs a chat template, and {why}", hint=hint)
    return prompt, not templated


def _read_as_a_whole(
    loaded: LoadedModel, text: str, truncate: bool, warn: Callable[[str], object], **more: Any
) -> list[int]:
    from mlxport.run.text_encoding import encode_texts, longest_text

    tokenizer = loaded.tokenizer._tokenizer
    limit, beyond = longest_text(tokenizer, loaded.config), warn if ModelConfig(loaded.config).any_length else None
    (tokens,) = encode_texts(tokenizer, [text], limit, loaded.config, truncate, beyond, **more)["input_ids"]
    return [int(token) for token in tokens]


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=3)  # the caller of generate

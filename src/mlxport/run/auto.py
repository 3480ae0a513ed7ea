"""The two classes that code written for transformers expects, on MLX."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlxport.errors import UsageError
from mlxport.model_config import ModelConfig
from mlxport.run.kv import KVQuant, check_model, chosen_kv, prompt_cache, recorded_kv
from mlxport.run.load import check_ids, load_model, refuse_encoder, resolve
from mlxport.run.sampling import Sampling

if TYPE_CHECKING:
    import numpy as np

    Ids = np.ndarray[Any, np.dtype[np.int64]]

__all__ = ["AutoModelForCausalLM", "AutoTokenizer", "MlxCausalLM"]


class AutoTokenizer:
    """transformers' AutoTokenizer, imported when it is used."""

    @staticmethod
    def from_pretrained(path: str | os.PathLike[str], **options: Any) -> Any:
        """Load the tokenizer of a folder or repository; options are those of transformers.

        Code of the folder runs with ``trust_remote_code=True`` only; transformers by itself would ask on the terminal.
        """
        from transformers import AutoTokenizer as HfAutoTokenizer

        return HfAutoTokenizer.from_pretrained(path, **{"trust_remote_code": False, **options})


class AutoModelForCausalLM:
    """Loads what ``mlxport convert`` and mlx-lm write."""

    @staticmethod
    def from_pretrained(path: str | os.PathLike[str], *, trust_remote_code: bool = False) -> MlxCausalLM:
        """Load a converted folder, or a repository that holds one.

        Raises:
            SourceError: No such folder, not a model, or a checkpoint that has not been converted.
            UnsupportedError: mlx-lm does not know the architecture.
            UnsafeError: The folder carries code and ``trust_remote_code`` is not given.
        """
        folder = resolve(path)
        model, config = load_model(folder, trust_remote_code=trust_remote_code)
        refuse_encoder(model, folder, "AutoModelForCausalLM")
        return MlxCausalLM(model, config, recorded_kv(folder))


class MlxCausalLM:
    """A causal language model of mlx-lm with the ``generate`` of transformers.

    Attributes:
        model: The mlx-lm module.
        config: Its configuration; ``eos_token_id`` of generation_config.json wins.
        kv: The quantized cache that ``generate`` uses unless told otherwise, None for a plain one.
    """

    def __init__(self, model: Any, config: dict[str, Any], kv: KVQuant | None = None) -> None:
        self.model = model
        self.config = config
        self.kv = kv

    def __call__(self, input_ids: Any) -> Any:
        """Return the logits of unpadded `input_ids` [B, T] as an ``mx.array`` [B, T, vocabulary], not yet evaluated."""
        import mlx.core as mx

        return self.model(mx.array(_ids(input_ids)))

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        max_new_tokens: int = 256,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        top_k: int = 0,
        seed: int | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        streamer: Any = None,
        token_type_ids: Any = None,
        kv_bits: int | str | None = None,
        kv_group_size: int | None = None,
        quantized_kv_start: int | None = None,
    ) -> Ids:
        """Continue each row of `input_ids`, as the method of the same name in transformers does.

        Rows are generated one after another, each without its padding, so a row's result does not depend on the others.
        Unlike transformers, sampling settings of generation_config.json are not read, only its end of sequence.

        Args:
            input_ids: Integers [B, T] or [T]: NumPy, ``mx.array`` or lists, as a tokenizer returns them.
            attention_mask: [B, T], 0 where `input_ids` is padding, on either side; None is no padding.
            max_new_tokens: Most tokens to add to a row.
            do_sample: None samples when `temperature` is above 0; True samples, at
                temperature 1 unless given; False is greedy.
            temperature: Divides the logits; None or 0 is greedy.
            top_p: Probability mass to sample from, in (0, 1].
            min_p: Least probability relative to the most likely token's.
            top_k: Number of most likely tokens to sample from; 0 is off.
            seed: Makes sampling reproducible; row ``i`` is sampled as a single row with ``seed + i`` would be.
            eos_token_id: Ends a row; by default the configuration's.
            pad_token_id: Fills rows that ended early; by default the configuration's, else the end of sequence.
            streamer: Gets the prompt and then each token by ``put``, and ``end`` (one row only).
            token_type_ids: Accepted and not used, because tokenizers return it.
            kv_bits: Bits of a quantized key-value cache, or ``"none"``; None is what the model was converted for.
            kv_group_size: As in :func:`mlxport.run.generate`.
            quantized_kv_start: As in :func:`mlxport.run.generate`.

        Returns:
            int64 [B, T + new]: each prompt as given, then what was generated.

        Raises:
            UsageError: An option is out of range, mask and ids do not fit, or there can be no such cache.
            TypeError: An option that does not exist.
        """
        import numpy as np

        from mlxport.transform.cpu_experts import remarked

        del token_type_ids
        ids = _ids(input_ids)
        kv = chosen_kv(self.kv, kv_bits, kv_group_size, quantized_kv_start)
        if kv is not None:
            check_model(self.model, kv, str(self.config.get("model_type")))
        sampling = _sampling(max_new_tokens, do_sample, temperature, top_p, min_p, top_k, seed)
        ends = _id_list(self.config.get("eos_token_id") if eos_token_id is None else eos_token_id)
        pad = self.config.get("pad_token_id") if pad_token_id is None else pad_token_id
        if attention_mask is None and pad is not None and pad not in ends:
            attention_mask = ids != pad  # as transformers does
        prompts = _unpad(ids, attention_mask)
        check_ids((token for prompt in prompts for token in prompt), self.config)
        if streamer is not None:
            if len(prompts) != 1:
                raise UsageError(f"a streamer takes one row, got {len(prompts)}")
            streamer.put(ids)
        remarks: list[str] = []
        with remarked(remarks.append):
            rows = [self._row(prompt, sampling, ends, index, streamer, kv) for index, prompt in enumerate(prompts)]
        for remark in remarks:
            warnings.warn(remark, UserWarning, stacklevel=2)
        if streamer is not None:
            streamer.end()
        return np.concatenate([ids, _padded(rows, ends, pad)], axis=1)

    def _row(
        self, prompt: list[int], sampling: Sampling, ends: list[int], index: int, streamer: Any, kv: KVQuant | None
    ) -> list[int]:
        import mlx.core as mx
        import numpy as np
        from mlx_lm.generate import generate_step

        sampling.seed_random(index)
        sampler = sampling.sampler(ModelConfig(self.config).vocabulary)
        row: list[int] = []
        options: Any = {
            "max_tokens": sampling.max_tokens,
            "sampler": sampler,
            **(kv.options() if kv is not None else {}),
        }
        options["prompt_cache"] = prompt_cache(self.model, kv)
        for token, _ in generate_step(mx.array(prompt), self.model, **options):
            row.append(int(token))
            if streamer is not None:
                streamer.put(np.array([token]))
            if token in ends:
                break
        return row


def _padded(rows: list[list[int]], ends: list[int], pad_token_id: int | None) -> Ids:
    """Return rows as one array, the short ones filled as transformers does."""
    import numpy as np

    if pad_token_id is None:
        # Without an end of sequence all rows are equally long, and the filler is never seen.
        pad_token_id = ends[0] if ends else 0
    out = np.full((len(rows), max(len(row) for row in rows)), pad_token_id, dtype=np.int64)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out


def _ids(input_ids: Any) -> Ids:
    """Return token ids as int64 [B, T].

    Raises:
        UsageError: They are not integers, not rectangular or empty.
    """
    import numpy as np

    try:
        ids = np.array(input_ids)
    except ValueError as error:
        hint = 'pass padding=True and return_tensors="np" to the tokenizer'
        raise UsageError("input_ids: rows of different lengths", hint=hint) from error
    if ids.ndim == 1:
        ids = ids[None]
    if ids.ndim != 2 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        hint = 'pass what the tokenizer returns with return_tensors="np"'
        raise UsageError(f"input_ids: expected integers [batch, tokens], got {ids.dtype} {list(ids.shape)}", hint=hint)
    return ids.astype(np.int64)


def _unpad(ids: Ids, attention_mask: Any) -> list[list[int]]:
    import numpy as np

    if attention_mask is None:
        return [[int(token) for token in row] for row in ids]
    mask = np.array(attention_mask)
    mask = mask[None] if mask.ndim == 1 else mask
    if mask.shape != ids.shape:
        raise UsageError(f"attention_mask: expected the shape of input_ids {list(ids.shape)}, got {list(mask.shape)}")
    prompts = []
    for index, (row, keep) in enumerate(zip(ids, mask.astype(bool), strict=True)):
        places = np.flatnonzero(keep)
        if places.size == 0:
            raise UsageError(f"attention_mask: row {index} is all padding", hint="give every row at least one token")
        if places[-1] - places[0] + 1 != places.size:
            raise UsageError(f"attention_mask: row {index} has a hole", hint="only padding at an end can be masked")
        prompts.append([int(token) for token in row[keep]])
    return prompts


def _sampling(
    max_new_tokens: int,
    do_sample: bool | None,
    temperature: float | None,
    top_p: float,
    min_p: float,
    top_k: int,
    seed: int | None,
) -> Sampling:
    if do_sample is False and temperature:
        warnings.warn(f"do_sample=False: temperature={temperature} is not used", UserWarning, stacklevel=3)
        temperature = 0.0
    if do_sample and temperature is None:
        temperature = 1.0
    if do_sample and not temperature:
        raise UsageError("do_sample=True with temperature 0", hint="leave out do_sample for greedy generation")
    return Sampling(max_new_tokens, temperature or 0.0, top_p, min_p, top_k, seed)


def _id_list(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(item) for item in value] if isinstance(value, (list, tuple)) else [int(value)]

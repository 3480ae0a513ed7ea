"""Original and output as mlx-lm's own models in float32, in memory where they fit, else read where they are used."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlxport.errors import ConfigError, MlxportError, NumericsError, UnsupportedError, UsageError, VerificationError
from mlxport.layouts.base import Layout
from mlxport.layouts.conversion import TracedModel
from mlxport.layouts.mlx_lm.layout import MLX_LM
from mlxport.layouts.table import AUTO, chosen, layout_of, refuse_unknown_code
from mlxport.model import loaded as out
from mlxport.model.both_texts import called_with_both, first_written, has_encoder
from mlxport.model.hooks import first_array, watching
from mlxport.model.memory import available_memory
from mlxport.model.streaming import stream
from mlxport.model.tensors import Tensor, computed_tensors, stored_tensors, whole
from mlxport.model_config import ModelConfig
from mlxport.output.record import read_record
from mlxport.run.load import resolve
from mlxport.source import open_checkpoint
from mlxport.source.jsonfile import read_object
from mlxport.source.tokenizer_files import embedding_rows
from mlxport.source.written_code import refuse_foreign_source
from mlxport.transform import Program, lazy_outputs
from mlxport.types import Checkpoint

__all__ = ["Opened", "open_original", "open_output", "original_of", "place"]

Array = np.ndarray[Any, Any]
_NO_LIMIT = 1 << 31


def _on_cpu() -> bool:
    return bool(mx.default_device() == mx.cpu)


@dataclass
class Opened:
    """A model to be run for its logits, in float32 whatever dtype it is stored in.

    Attributes:
        label: What to call it in messages.
        folder: Where its tokenizer lies.
        config: Its config.
        model: mlx-lm's model.
        program: From the checkpoint's tensors to the model's, of an original only.
        packing: Path of each quantized module to how MLX reads its weight.
        context: Longest sequence that it was made for, None where its config does not say.
        trust_remote_code: Whether code of its folder may run (its tokenizer's).
        placed: ``memory``, ``disk``, or empty before ``place``.
        remarks: What a reader must know.
        change: What its weights are taken for instead, by name; of an original only.
        start: Token that begins what is written, of an original that reads with an encoder.
    """

    label: str
    folder: Path
    config: Mapping[str, Any]
    model: Any
    program: Program | None = None
    packing: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    context: int | None = None
    trust_remote_code: bool = False
    placed: str = ""
    remarks: list[str] = field(default_factory=list)
    change: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    start: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of its parameters in memory, packed weights as they are."""
        values = [value for _, value in tree_flatten(self.model.parameters())]
        return sum(4 * v.size if mx.issubdtype(v.dtype, mx.floating) else int(v.nbytes) for v in values)

    @property
    def unpacked_nbytes(self) -> int:
        """The same with packed weights dequantized."""
        return 4 * sum(prod(shape) for shape in self.weights.values())

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its parameters by name, as they are stored or computed."""
        if self.program is None:
            return stored_tensors(self.folder)
        found = computed_tensors(self.program)
        return {**found, **{name: change(found[name]) for name, change in self.change.items()}}

    @property
    def stored_nbytes(self) -> int:
        """Bytes that reading all of it from disk takes."""
        if self.program is not None:
            return sum(ref.nbytes for ref in self.program.refs.values())
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def unpackable(self) -> bool:
        """Whether mlx-lm can dequantize all of it."""
        return not any("global_scale" in module for _, module in self.model.named_modules())

    @property
    def weights(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, those of packed weights as what they stand for."""
        found = {}
        for path, module in self.model.named_modules():
            packed = "scales" in module and hasattr(module, "bits")
            for name, value in module.items():
                if isinstance(value, mx.array) and not (packed and name in ("scales", "biases", "global_scale")):
                    shape = tuple(value.shape)
                    if packed and name == "weight":
                        shape = (*shape[:-1], shape[-1] * 32 // module.bits)
                    found[f"{path}.{name}" if path else name] = shape
        return found

    @property
    def parameters(self) -> int:
        """Number of its weights."""
        return sum(prod(shape) for shape in self.weights.values())

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding, as many as there can be where nothing tells."""
        return embedding_rows(self.config, self.weights) or _NO_LIMIT

    def load(self, unpack: bool = False) -> None:
        """Read its weights, one after the other; ``unpack`` dequantizes them."""
        if self.program is not None:
            self.model.load_weights(list(lazy_outputs(self.program).items()))
        if self.change:
            tensors = self.tensors
            self.model.load_weights([(name, whole(tensors[name])) for name in self.change], strict=False)
        out.upcast(self.model)
        if unpack:
            from mlx_lm.utils import dequantize_model

            dequantize_model(self.model).set_dtype(mx.float32)
        for _, value in tree_flatten(self.model.parameters()):
            mx.eval(value)
        mx.clear_cache()
        self.placed = "memory"

    def stream(self) -> None:
        """Make every layer read its weights where it uses them."""
        if self.program is not None:
            self.model.load_weights(list(lazy_outputs(self.program).items()))
        kept = stream(self.model, self.tensors)
        self.remarks += [f"{path} of {self.label} stays in memory once read" for path in kept]
        self.placed = "disk"

    def logits(self, ids: Array) -> Array:
        """Logits of one sequence, float32, [tokens, vocabulary].

        Raises:
            NumericsError: Some are NaN or infinite; names the first module that makes such values.
            UnsupportedError: mlx-lm cannot run the model.
        """
        with self.bounded():
            try:
                found = out.logits(self.model, ids, self.label)
            except VerificationError as error:
                raise UnsupportedError(error.message, hint=error.hint) from error
            if np.isfinite(found).all():
                return found
            bad = int(found.size - np.isfinite(found).sum())
            raise NumericsError(
                f"{bad} of {found.size} logits of {self.label} are NaN or infinite{self._first_bad(ids)}",
                hint="the weights hold such values, or overflow: mlxport inspect, or another --dtype",
            )

    @contextlib.contextmanager
    def bounded(self) -> Iterator[None]:
        """Keep no freed memory while weights come and go."""
        if self.placed != "disk":
            yield
            return
        limit = mx.set_cache_limit(0)
        try:
            yield
        finally:
            mx.set_cache_limit(limit)

    def _first_bad(self, ids: Array) -> str:
        found: list[str] = []

        def seen(path: str, kind: str, _: Any, result: Any) -> None:
            array = first_array(result)
            if not found and array is not None and mx.issubdtype(array.dtype, mx.floating):
                if not mx.isfinite(array).all().item():
                    found.append(f", first from {path} ({kind})")

        with watching(self.model, lambda _: True, seen):
            out.logits(self.model, ids, self.label)
        return found[0] if found else ""


def open_original(source: str | Path | Checkpoint, *, trust_remote_code: bool = False) -> Opened:
    """The model of a checkpoint, its stored values taken as float32; nothing is read yet.

    Args:
        source: A folder, a hub id, or an opened checkpoint.
        trust_remote_code: Whether code of the checkpoint may run (its tokenizer's); an opened one says so itself.

    Raises:
        SourceError: It cannot be opened.
        UnsupportedError: mlx-lm cannot run it.
    """

    def check(config: Mapping[str, Any]) -> None:
        refuse_unknown_code(config, str(source), trust_remote_code)

    if not isinstance(source, Checkpoint):
        source = open_checkpoint(source, trust_remote_code=trust_remote_code, check_config=check)
    try:
        traces = chosen(AUTO, source.config, source.tensors, text_only=True).traces or MLX_LM.traces
        assert traces is not None
        opened = traces(source, "float32")
    except UnsupportedError as error:
        hint = "quality is measured with mlx-lm's model of the original; mlxport verify compares with torch's"
        raise UnsupportedError(f"no original to measure against: {error.message}", hint=hint) from error
    return original_of(opened)


def original_of(traced: TracedModel) -> Opened:
    """The same of a checkpoint that is opened already, its values in the dtype that it was opened in."""
    source, model = traced.checkpoint, called_with_both(traced.skeleton())
    return Opened(
        "the original",
        source.root,
        source.config,
        model,
        traced.plain.program,
        out.packings(model),
        text_limit(source.config),
        source.trust_remote_code,
        start=first_written(source) if has_encoder(model) else 0,
    )


def open_output(folder: str | Path, *, trust_remote_code: bool = False, layout: Layout | None = None) -> Opened:
    """A converted model, by mlxport or by mlx-lm; nothing is read yet.

    Args:
        folder: Where it lies, or a hub id.
        trust_remote_code: Whether code of the folder may run.
        layout: Its layout, where that is known; by default what its record says.

    Raises:
        SourceError: The folder is not a converted model, or is built by code that is not trusted (UnsafeError).
        UnsupportedError: mlx-lm cannot load it, or it is a port with code of its own.
    """
    path = resolve(folder)
    config = read_object(path / "config.json", ConfigError, unique=False)
    own = refuse_foreign_source(path, config, trust_remote_code)  # as what the hint names would
    if own and not (layout or layout_of(config, read_record(path))).own_source:
        raise UnsupportedError(
            f"{folder} is built by code of its own, and quality is measured with models that run on mlx-lm's caches",
            hint="mlxport verify compares a port with its original in torch",
        )
    try:
        model = out.load_output(path, trust_remote_code=trust_remote_code)
    except VerificationError as error:
        raise UnsupportedError(f"{folder}: {error.message}", hint="convert it again") from error
    return Opened("the output", path, config, model, None, out.packings(model), text_limit(config), trust_remote_code)


def text_limit(config: Mapping[str, Any]) -> int | None:
    """Up to how many tokens the model was made for, and mlx-lm computes what the original computes."""
    from mlxport.layouts.mlx_lm.normalize import normalize_config

    limits = [ModelConfig(config).context_length]
    with contextlib.suppress(MlxportError):
        limits.append(normalize_config(config).exact_tokens)
    return min((limit for limit in limits if limit), default=None)


def place(original: Opened, output: Opened, memory_limit: int | None = None) -> None:
    """Load what fits into memory, the output before the original; the rest is read from disk where it is used.

    Args:
        original: Not placed yet, or left as it is.
        output: Not placed yet, or left as it is.
        memory_limit: Bytes for both; default half of what is available, for what is not placed yet.

    Raises:
        UsageError: They are not two versions of one model.
    """
    check_same_model(original, output)
    taken = sum(side.nbytes for side in (original, output) if side.placed == "memory")
    limit = available_memory() // 2 if memory_limit is None else memory_limit - taken
    waiting = [side for side in (output, original) if not side.placed]
    for side in waiting:
        later = sum(other.nbytes for other in waiting if not other.placed and other is not side)
        # On the CPU, MLX multiplies packed weights ten times as slowly; what they stand for is the same.
        unpack = _on_cpu() and side.unpackable and side.unpacked_nbytes + later <= limit
        needed = side.unpacked_nbytes if unpack else side.nbytes
        if needed <= limit:
            limit -= needed
            side.load(unpack)
        else:
            side.stream()


def check_same_model(original: Opened, output: Opened) -> None:
    """Refuse two models that do not have the same weights by name and shape."""
    theirs, ours = original.weights, output.weights
    missing = [name for name in theirs if name not in ours]
    other = [name for name, shape in theirs.items() if name in ours and ours[name] != shape]
    kinds = [side.config.get("model_type") for side in (original, output)]
    if not missing and not other:
        return
    if other:
        what = f"{other[0]} has shape {list(theirs[other[0]])} there and {list(ours[other[0]])} here"
    else:
        what = f"{len(missing)} of its {len(theirs)} weights are not here, such as {missing[0]}"
    raise UsageError(
        f"{output.folder} was not made from {original.folder} ({kinds[0]}, here {kinds[1]}): {what}",
        hint="give the checkpoint that it was converted from",
    )

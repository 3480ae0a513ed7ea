"""A model of pictures and text against the original in torch: logits of text, and of pictures with text.

Both compute in float32. The original holds the very weights that were stored, where these are not its own, so that what
differs is the computation; the stored weights are held against the checkpoint's apart from that.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import torch

from mlxport.errors import UnsupportedError, UsageError
from mlxport.layouts.generated.hf_model import empty_model
from mlxport.model.loaded import DTYPE_NAMES, float_dtypes, packings, upcast
from mlxport.model.memory import refuse_large
from mlxport.model_config import ModelConfig
from mlxport.parity.lazy_reference import LazyWeight, lazy_parameters
from mlxport.parity.port_parity import compare
from mlxport.parity.port_report import OutputComparison, PortParity
from mlxport.parity.reference import quiet
from mlxport.parity.stored import StoredLayout, StoredWeights
from mlxport.parity.weight_errors import check_weights, differences
from mlxport.run.tasks.picture_inputs import example_pictures, load_image_processor
from mlxport.run.vision_language import VisionLanguage, load_vision_language
from mlxport.source.part_names import TOWER
from mlxport.transform import Program, invert
from mlxport.types import Checkpoint

__all__ = ["PictureParity", "compare_pictures"]

_TEXT = "What is to be seen here, and how many of them?"
_ONE_WAY = (
    "mlxport run reads the pictures of this model in both directions, as the original does; mlx_vlm.generate reads "
    "them in one, and its logits are {:.1e} of the scale off"
)
_LENGTH = 8  # tokens of the answer
_SMALL = 2 << 30  # bytes of float32 weights that are run once for each token of an answer


@dataclass(frozen=True)
class PictureParity(PortParity):
    """The verification of a model of pictures and text.

    Attributes:
        answer: What was written greedily by both, in tokens; empty where that was not compared.
    """

    mode: str = "pictures"
    answer: tuple[int, ...] = field(default=(), kw_only=True)

    def summary(self) -> str:
        """Lines for a terminal."""
        told = f"\nanswer about two pictures: {len(self.answer)} tokens as the original's" if self.answer else ""
        return super().summary() + told

    def to_json(self) -> dict[str, Any]:
        """Plain values only, for the record."""
        return {**super().to_json(), "answer_tokens": len(self.answer)}

    def _verdict(self) -> str:
        return "the output does not compute what the original computes"


def compare_pictures(
    folder: Path, checkpoint: Checkpoint, program: Program, *, trust_remote_code: bool = False
) -> PictureParity:
    """Compare a folder that mlx-vlm loads with its original.

    Args:
        folder: The output.
        checkpoint: The original.
        program: From the tensors of the checkpoint to those of the output.
        trust_remote_code: Run source of the folder that this installation did not write.

    Raises:
        UnsupportedError: mlx-vlm is not installed, transformers lacks the model, or memory does not suffice.
        VerificationError: mlx-vlm cannot load the output.
    """
    ours, (_, dtype) = _opened(folder, trust_remote_code), float_dtypes(folder)
    packing = packings(ours.model)
    layout = StoredLayout(StoredWeights(folder, packing), partial(invert, program), checkpoint.tensors, bounded=False)
    weights, exact = check_weights(differences(checkpoint, layout, dtype))
    bits = min((int(how["bits"]) for how in packing.values()), default=None)
    report = PictureParity(DTYPE_NAMES[dtype], bits, (), weights=weights)
    if not weights.passed:
        return report
    sizes = {name: 4 * ref.size for name, ref in checkpoint.tensors.items()}
    small = sum(sizes.values()) <= _SMALL
    towers = sum(size for name, size in sizes.items() if TOWER.search(name))
    refuse_large(sum(sizes.values()) + (0 if small else towers), "{} of weights run in float32", 0.5 if small else 0.75)
    upcast(ours.model)
    theirs = _original(checkpoint, None if exact else layout, whole=small)
    return _compared(report, ours, theirs, checkpoint, answers=small)


def _opened(folder: Path, trust_remote_code: bool) -> VisionLanguage:
    try:
        return load_vision_language(folder, trust_remote_code=trust_remote_code)
    except UsageError as error:
        raise UnsupportedError(f"{error.message}: {error.hint}", hint=error.hint) from error


def _original(checkpoint: Checkpoint, layout: StoredLayout | None, *, whole: bool) -> Any:
    """Transformers' model in float32, its towers in memory: they ask for the dtype of what they hold.

    Args:
        checkpoint: The original.
        layout: The weights to compute with, None for its own.
        whole: Hold the language model too; else its weights are read where they are used, each time.

    Raises:
        UnsupportedError: Not every weight of it is in the checkpoint.
    """
    with quiet():
        model = empty_model(checkpoint, dtype=torch.float32, attention="eager", use_cache=True)
    model = lazy_parameters(model, checkpoint, layout=layout)
    absent = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if absent:
        raise UnsupportedError(
            f"{checkpoint.name} has no weights for {', '.join(absent[:4])}",
            hint="without them there is nothing to compare: convert with --verify none",
        )
    read: dict[int, torch.nn.Parameter] = {}
    for path, module in model.named_modules():
        if not whole and not TOWER.search(path):
            continue
        for name, value in [item for item in vars(module).items() if isinstance(item[1], LazyWeight)]:
            if id(value) not in read:
                read[id(value)] = torch.nn.Parameter(value.source.whole(), requires_grad=False)
            del module.__dict__[name]
            module.register_parameter(name, read[id(value)])
    _round_scales(model, ModelConfig(checkpoint.config).dtype)
    return model


def _round_scales(model: Any, dtype: str | None) -> None:
    """Give embeddings the scale that the original has in its own dtype, to which it casts it: mlx-vlm has the same."""
    if dtype != "bfloat16":
        return
    for module in model.modules():
        if isinstance(scale := getattr(module, "embed_scale", None), torch.Tensor):
            module.embed_scale = scale.to(torch.bfloat16).to(torch.float32)


def _compared(
    report: PictureParity, ours: VisionLanguage, theirs: Any, checkpoint: Checkpoint, *, answers: bool
) -> PictureParity:
    pictures = [picture.resize((picture.width // 2, picture.height // 2)) for picture in example_pictures()[:2]]
    processor = load_image_processor(checkpoint.root)
    rows: list[OutputComparison] = []
    problems: list[str] = []
    notes: list[str] = []
    answer: list[int] = []
    for name, shown in (("text", []), ("two pictures and text", pictures)):
        inputs = ours.inputs(ours.prompt(_TEXT, len(shown)), shown)
        given = _for_torch(inputs)
        if shown:
            prepared = processor(images=shown, return_tensors="np")
            taken = inspect.signature(theirs.forward).parameters
            given.update({key: torch.from_numpy(np.asarray(prepared[key])) for key in prepared.keys() & taken.keys()})
            given.update(_kinds(theirs, given["input_ids"]))
        rows.append(_row(name, ours.logits(inputs), theirs, given))
        if ours.both_ways(inputs):
            other_way = _row(name, ours.logits(inputs, one_way=True), theirs, given)
            notes.append(_ONE_WAY.format(other_way.relative))
        if shown and answers and rows[-1].passed:
            mine, other = _answer(ours, inputs), _torch_answer(theirs, given)
            answer = other if mine == other else []
            problems += [] if mine == other else [f"an answer has the tokens {mine}, the original's {other}"]
    return replace(
        report, comparisons=tuple(rows), problems=tuple(problems), notes=tuple(notes), answer=tuple(answer)
    )  # fmt: skip


def _kinds(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Which tokens stand for pictures, as transformers' own processors say beside the tokens."""
    taken = inspect.signature(model.forward).parameters
    name = next((name for name in ("mm_token_type_ids", "token_type_ids") if name in taken), None)
    return {} if name is None else {name: (ids == model.config.image_token_id).to(torch.int64)}


def _for_torch(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: torch.from_numpy(np.array(value)) for name, value in inputs.items() if isinstance(value, mx.array)}


def _row(name: str, logits: mx.array, theirs: Any, given: Mapping[str, Any]) -> OutputComparison:
    with torch.inference_mode():
        wanted = theirs(**given, use_cache=False).logits
    found = compare(logits, wanted.to(torch.float32), "float32", None)
    return OutputComparison(name, "logits", tuple(wanted.shape), *found[:4], not found.failure, found.failure)


def _answer(ours: VisionLanguage, inputs: Mapping[str, Any]) -> list[int]:
    return [int(piece.token) for piece in ours.stream(dict(inputs), max_tokens=_LENGTH, temperature=0.0)][:_LENGTH]


def _torch_answer(theirs: Any, given: Mapping[str, Any]) -> list[int]:
    settings: dict[str, Any] = {"do_sample": False, "num_beams": 1, "max_new_tokens": _LENGTH, "min_new_tokens": 0}
    with torch.inference_mode(), quiet():
        made: Sequence[int] = theirs.generate(**given, **settings)[0, given["input_ids"].shape[1] :].tolist()
    return [int(token) for token in made]

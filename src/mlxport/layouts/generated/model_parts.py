"""What a model is that is ported in parts: which entry points a class has, and how each is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from mlxport.types import Checkpoint

__all__ = ["Part", "PartedModel"]


@dataclass(frozen=True)
class Part:
    """One entry point of a model.

    Attributes:
        name: What its file is called, and the function that it is.
        inputs: Names of what it takes, as the model's own method calls them; what a class does not have is left out.
        call: Computes it: the model, and its inputs by name, to one tensor, or to several by their names.
        of_parts: Which of the inputs are what another part gives, to that part's name; of several the one of that name.
        example: Makes inputs to capture it with, of the model, in the dtypes that it takes; None where names and config
            tell them.
    """

    name: str
    inputs: tuple[str, ...]
    call: Callable[..., Any]
    of_parts: Mapping[str, str] = field(default_factory=dict)
    example: Callable[[Any], dict[str, Any]] | None = None


@dataclass(frozen=True, kw_only=True)
class PartedModel:
    """A kind of model, and its parts in an order in which none comes before what it takes.

    Attributes:
        model_types: Of the config, those that are known to convert.
        task: What it is for, as Hugging Face names tasks.
        usage: The model card's section on how the folder ``PATH`` is used.
        parts: The parts; the last gives what the whole model is for.
        mapping: The table of transformers that names its classes; empty where it is of another library.
        whole: What the last part gives by the class's own methods: the model and the inputs of all parts, by name; None
            where nothing of the class computes that in one call.
        empty: Makes the model without its weights, of a checkpoint, a dtype and a kind of attention; None where
            transformers does.
        quantized: The models of a pipeline of which ``-q`` quantizes layers; empty for all there are.
        prepare: Puts what torch.export can follow at any size in the place of what a model computes; None where nothing
            has to be.
    """

    model_types: frozenset[str]
    task: str
    usage: str
    parts: tuple[Part, ...]
    mapping: str = ""
    whole: Callable[..., Any] | None = None
    empty: Callable[[Checkpoint, torch.dtype, str], Any] | None = None
    quantized: tuple[str, ...] = ()
    prepare: Callable[[Any], None] | None = None

"""What a layout is: how a runtime wants a model's folder, as data that the steps of a conversion read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from mlxport.layouts.conversion import Conversion, TracedModel
    from mlxport.quant import QuantRequest
    from mlxport.types import Checkpoint

__all__ = ["Layout", "LayoutOptions", "PlainOptions", "Refusal", "captured_only", "measured_on_text"]


class LayoutOptions(Protocol):
    """What a layout may ask of the options of ``convert``."""

    @property
    def dtype(self) -> str:
        """Name of the floating dtype, or ``auto``."""

    @property
    def quant(self) -> QuantRequest | None:
        """What to quantize, None for nothing."""

    @property
    def dynamic(self) -> Any:
        """Whether sizes of inputs may change, or how (``torch.export``)."""

    @property
    def fold_batchnorm(self) -> bool:
        """Whether to multiply BatchNorm into the convolution before it."""

    @property
    def mlxfn(self) -> bool:
        """Whether to write ``model.mlxfn`` too."""

    @property
    def made_by(self) -> Layout | None:
        """The layout of a source that was converted before, for one that brings it back."""

    @property
    def original(self) -> Checkpoint | None:
        """What such a source was made from, where that is at hand."""


@dataclass(frozen=True)
class PlainOptions:
    """Those of a conversion that at most casts."""

    dtype: str = "auto"
    quant: QuantRequest | None = None
    dynamic: bool = True
    fold_batchnorm: bool = False
    mlxfn: bool = False
    made_by: Layout | None = None
    original: Checkpoint | None = None


PORT_FILE = "model.py"
"""What the source of a port is called, to which ``model_file`` in its config points."""


@dataclass(frozen=True)
class Refusal:
    """Options that a layout has no use for.

    Attributes:
        options: Their names, as keywords of ``convert``; any of them is refused.
        message: Why; ``{given}`` is what was given of them, as the command line spells it.
        hint: What to do instead.
    """

    options: tuple[str, ...]
    message: str
    hint: str


def captured_only(runtime: str) -> Refusal:
    """Options of ports, for a layout whose model the runtime has."""
    return Refusal(
        ("dynamic", "fold_batchnorm", "mlxfn"),
        f"{{given}}: for the generated layout only, and this one is {runtime}'s",
        "add --layout generated, or leave it out",
    )


def measured_on_text(why: str) -> tuple[Refusal, ...]:
    """Options that run a language model on texts; ``why`` this layout has none."""
    return (
        Refusal(("calibrate",), f"{{given}}: {why}", "use --quantizer search instead"),
        Refusal(
            ("fit", "target_size", "target_bpw"),
            f"--fit, --target-size and --target-bpw: {why}",
            "choose bits with -q, or a recipe with --recipe",
        ),
    )


def _everything(path: PurePath) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to lay a model out in a folder, for one runtime.

    Attributes:
        name: What ``--layout`` and the record call it.
        summary: What to add to the name in a list of layouts; may be empty.
        claims: Whether ``--layout auto`` means this one, by a checkpoint's config and the names of its tensors (none
            while only the config is known). The first in the table that claims a checkpoint gets it.
        opens: From a checkpoint and the options to what will be written.
        traces: The model of a checkpoint in a dtype, as the runtime builds it; None where it has none.
        foresees: ``opens`` by the headers alone, as far as it goes without the weights: what it refuses is known before
            they are fetched. None where that takes too long.
        check: Refuses a config that cannot be converted, before anything else is fetched; its second argument is what
            to call the config in an error.
        glance: ``claims`` by the config, without an import of anything large; a wrong answer costs time only.
        needs_torch: Whether a checkpoint is opened with torch.
        refuses: Options that it has no use for.
        records: Flags that the record keeps of its options, because the original is captured by them again.
        weights: What the files of weights are called, before the number and ``.safetensors``.
        one_file: Whether all weights lie in one file, however large it is.
        files: Patterns of what else it writes, so that ``--overwrite`` may delete it.
        carries: Which of the source's other files, by their path in it, go into the output as well; cards never do,
            and code only where it is trusted.
        tokenizer: Whether the output is used with the source's tokenizer, which is then checked against the embeddings.
        task: What the model card says it is for unless the source's says so, as Hugging Face names tasks; "" for
            nothing. It may depend on the config.
        usage: The card's section on how the output is used. It may depend on the config.
        verification: What is compared with the original: ``logits`` of a language model, all ``outputs`` of the example
            that the conversion holds, ``sequences`` that are written in one call and in several, ``parts`` by
            themselves and together, logits of ``pictures`` and text, states and logits of ``speech``, the
            source with what was ``restored`` of it, or nothing.
        verifies_generation: Whether the comparison of ``logits`` goes on to text generated with the runtime's caches:
            the model's code is as new as its weights, and nobody else has run it.
        run_by: The commands that generate text with it, where that has to be said.
        whole: Whether its models have other parts than a text model, so that it is none for ``--text-only``.
        wrote: Whether a folder without a record is of this layout, by its config.
        keeps_groups: Whether a source that is quantized in MLX's groups keeps them in the output.
        backwards: Whether it is what others are converted from, so that only ``--to`` names it.
        framework: What the metadata of its files say whose tensors they are.
        library: What the model card says that it is loaded by.
        not_generating: Why ``generate`` and ``chat`` cannot run it, and what to do with the folder ``PATH``; None if
            they can.
    """

    name: str
    opens: Callable[[Checkpoint, LayoutOptions], Conversion]
    claims: Callable[[Mapping[str, Any], Collection[str]], bool]
    summary: str = ""
    traces: Callable[[Checkpoint, str], TracedModel] | None = None
    foresees: Callable[[Checkpoint, LayoutOptions], Conversion] | None = None
    check: Callable[[Mapping[str, Any], str], None] = lambda config, where: None
    glance: Callable[[Mapping[str, Any]], bool] = lambda config: False
    needs_torch: bool = False
    refuses: tuple[Refusal, ...] = ()
    records: tuple[str, ...] = ()
    weights: str = "model"
    one_file: bool = False
    files: tuple[str, ...] = ()
    carries: Callable[[PurePath], bool] = _everything
    tokenizer: bool = True
    task: str | Callable[[Mapping[str, Any]], str] = ""
    usage: str | Callable[[Mapping[str, Any]], str] = ""
    verification: Literal["logits", "outputs", "sequences", "parts", "pictures", "speech", "restored", ""] = ""
    verifies_generation: bool = False
    run_by: str = ""
    whole: bool = False
    wrote: Callable[[Mapping[str, Any]], bool] = lambda config: False
    keeps_groups: bool = False
    backwards: bool = False
    framework: str = "mlx"
    library: str = "mlx"
    not_generating: tuple[str, str] | None = None

    def task_of(self, config: Mapping[str, Any]) -> str:
        """``task`` of a model with this config."""
        return self.task if isinstance(self.task, str) else self.task(config)

    def usage_of(self, config: Mapping[str, Any]) -> str:
        """``usage`` of a model with this config."""
        return self.usage if isinstance(self.usage, str) else self.usage(config)

    @property
    def own_source(self) -> bool:
        """Whether its models are source of their own, which runs on mlx-lm's caches."""
        return self.needs_torch and self.traces is not None

    @property
    def patterns(self) -> tuple[str, ...]:
        """Of all files that are of this layout alone."""
        return (f"{self.weights}*.safetensors", f"{self.weights}*.safetensors.index.json", *self.files)

    @property
    def index(self) -> str:
        """Name of the file that says which tensor is in which file."""
        return f"{self.weights}.safetensors.index.json"

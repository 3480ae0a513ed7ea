"""What the user gives to ``convert`` and ``port``: one field an option, from which all lists of options are made.

The command line, the Python signatures, their descriptions and the tables of the documentation derive from the fields:
an option is added here, and used where it has its effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxport.errors import UsageError
from mlxport.layouts import table
from mlxport.layouts.base import Layout
from mlxport.layouts.generated.layout import GENERATED
from mlxport.layouts.hugging_face.layout import HUGGING_FACE
from mlxport.options.option_field import check_fields, declared, in_words, option
from mlxport.output.plan import DEFAULT_SHARD_SIZE, parse_size
from mlxport.quant import MIXED, MODES, plain_bits

__all__ = ["DTYPES", "PORTED", "TO_MLX", "VERIFY", "ConvertOptions", "SharedOptions", "check_layout"]

DTYPES = ("auto", "float32", "float16", "bfloat16")
VERIFY = ("auto", "full", "layerwise", "none")

_BITS = tuple(map(str, plain_bits()))
_BY_BITS, *_FORMATS = MODES
_QUANTIZATION = "Quantization"
_LIMIT = "Quantization under a limit"
_CACHE = "Key-value cache"
_REPORT = "Quality report"
PORTED = "Options of the generated layout"
TO_MLX = "mlx"
_NOTHING = {"calibrate": "none"}  # a value that means the default


def _stands_alone(following: str) -> bool:
    """Whether ``-q``, as in mlx-lm, has no value before this argument: a path is none, unless it is called like one."""
    if "/" not in following and not Path(following).exists():
        return False
    return following not in (*_BITS, *MODES, *MIXED) and not following.isdigit()


def _no_machine(following: str) -> bool:
    """Whether ``--fit`` means this machine: what follows is a path."""
    return bool(following) and Path(following).exists()


def _check_size(size: str | int) -> None:
    if isinstance(size, float):
        raise UsageError(f"{size!r} is not a size", hint="write it like 5GB, or as whole bytes")
    parse_size(size)


def _check_layout_name(name: str) -> None:
    if name != table.AUTO:
        table.named(name)


def _check_machine(name: str) -> None:
    from mlxport.fit.hardware import named_machine

    named_machine(name)


@dataclass(frozen=True, kw_only=True)
class SharedOptions:
    """What ``convert`` and ``port_folder`` have in common."""

    dtype: str = option(
        "auto",
        choices=DTYPES,
        doc="Of what is not quantized: ``auto`` (as stored, or as the config's torch_dtype says), ``float32``, "
        "``float16`` or ``bfloat16``.",
    )
    quantize: int | str | bool | None = option(
        None,
        f"Bits ({' '.join(_BITS)}), {', '.join(_FORMATS)}, or {MIXED[-1]} …; alone: {MODES[_BY_BITS].bits[0]}.",
        doc='Bits (affine), a mode (``"mxfp4"``), a mixed recipe (``"mixed_4_6"``), True for 4 bits, or None.',
        flags=("-q", "--quantize"),
        alone=_stands_alone,
        panel=_QUANTIZATION,
    )
    q_bits: int | None = option(
        None,
        "Bits per weight.",
        doc="Bits, beside ``quantize=True`` or a mode.",
        flags=("--q-bits", "--bits"),
        panel=_QUANTIZATION,
    )
    q_group_size: int | None = option(
        None,
        "Group size.",
        doc="Group size; the mode's default if None.",
        flags=("--q-group-size", "--group-size"),
        panel=_QUANTIZATION,
    )
    q_mode: str | None = option(
        None,
        in_words(tuple(MODES)),
        doc=in_words(tuple(f"``{mode}``" for mode in MODES)),
        panel=_QUANTIZATION,
    )
    recipe: str | Path | None = option(
        None,
        f"A TOML file of rules, or {MIXED[-1]} …",
        doc="A TOML file of rules, or a mixed recipe's name.",
        flags=("--recipe", "--quant-predicate"),
        panel=_QUANTIZATION,
    )
    quantizer: str | None = option(
        None,
        "rtn: mlx-lm's tensors; search: less error, same format.",
        doc="``rtn``, the default: the tensors of ``mlx_lm.convert``; ``search``: scales and biases of affine modules "
        "are chosen for the least squared error, in the same format (the default under a limit).",
        panel=_QUANTIZATION,
    )
    max_shard_size: str | int = option(
        DEFAULT_SHARD_SIZE,
        "Limit of an output file.",
        doc='Limit of an output file, such as ``"5GB"``.',
        check=_check_size,
    )
    verify: str = option(
        "auto",
        choices=VERIFY,
        doc=in_words(tuple(f"``{way}``" for way in VERIFY)),
    )
    overwrite: bool = option(
        False, "Replace DST, at the very end.", doc="Replace an existing model folder, at the very end."
    )
    dry_run: bool = option(False, "Print the plan; write nothing.", doc="Plan only; nothing is written.")
    dynamic: bool | Any = option(
        True,
        "Other input sizes, where provable.",
        doc="Of the generated layout: whether sizes of the inputs may change where torch.export proves that they can.",
        flags=("--dynamic/--no-dynamic",),
        panel=PORTED,
    )
    fold_batchnorm: bool = option(
        False,
        "Multiply BatchNorm into the convolution before it.",
        doc="Of the generated layout: multiply eval-mode BatchNorm into the convolution before it.",
        panel=PORTED,
    )
    mlxfn: bool = option(
        False,
        "Write model.mlxfn for C++ and Swift too.",
        doc="Of the generated layout: write ``model.mlxfn`` (``mx.export_function``) too, for C++ and Swift.",
        panel=PORTED,
    )
    quiet: bool = option(True, "Show no progress.", unset=False)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(SharedOptions):
    """What the user gives to ``convert``, checked as far as it can be before the checkpoint is opened."""

    fit: str | bool | None = option(
        None,
        'Choose bits by layer so that it runs on a Mac, as in "M2 8GB"; alone: this one.',
        doc='A machine such as ``"M2 8GB"`` (True: the Mac that this runs on): bits and group size of each module are '
        "chosen such that the model fits it and the predicted damage is least. Instead of ``quantize`` and the like.",
        alone=_no_machine,
        panel=_LIMIT,
    )
    context: int | None = option(
        None,
        "Tokens that have to fit too [4096].",
        doc="Tokens of prompt and answer that have to fit beside the weights; 4096 if None. With ``fit`` only.",
        panel=_LIMIT,
    )
    target_size: str | int | None = option(
        None,
        "Choose bits by layer for files of this size.",
        doc='The same under a limit of the weight files\' bytes, such as ``"6GB"``.',
        panel=_LIMIT,
    )
    target_bpw: float | None = option(
        None,
        "Choose bits by layer for so many per weight.",
        doc="The same under a limit of bits per weight, as mlx-lm counts them.",
        panel=_LIMIT,
    )
    calibrate: str | Path | None = option(
        None,
        "Quantize by activations on a text: default, self, FILE or none.",
        doc="``default`` (a text that is shipped), ``self`` (what the model writes itself), or a file of text: codes, "
        "scales and biases of affine modules are chosen by the activations that the model has on it; None or "
        "``none``: without.",
        panel=_QUANTIZATION,
    )
    distill: int | None = option(
        None,
        "Steps of training of scales and biases.",
        doc="Steps of training of the scales and biases of affine modules, and of norms, towards what the original "
        "predicts; None for none. The output is never worse on held-out text than without.",
        panel=_QUANTIZATION,
    )
    shard_by: str = option(
        "size",
        "size, or layer to keep each layer in one file.",
        doc="``size``, or ``layer`` to keep each layer in one file.",
        choices=("size", "layer"),
    )
    layout: str = option(
        "auto",
        table.in_words(),
        doc="``mlx-lm``; ``mlx-vlm``: pictures and text; ``generated``: MLX source of the model's own; ``auto``: that "
        "where mlx-lm has no such model.",
        check=_check_layout_name,
    )
    cache: bool = option(
        True,
        "Port a language model with mlx-lm's caches.",
        doc="Whether the port of a language model takes mlx-lm's caches, to generate with; without, it computes whole "
        "sequences.",
        flags=("--cache/--no-cache",),
        panel=PORTED,
    )
    to: str = option(
        TO_MLX,
        "mlx, or hf: of an MLX folder the Hugging Face folder again.",
        doc="``mlx``, or ``hf``: bring an MLX folder back to a Hugging Face folder that transformers loads.",
        choices=(TO_MLX, HUGGING_FACE.name),
    )
    against: str | Path | None = option(
        None,
        "With --to hf: the original, for names, config and tokenizer.",
        doc="With ``to='hf'``: the checkpoint that the MLX folder was made from, a folder or a hub id, of which names, "
        "config and tokenizer are taken.",
    )
    text_only: bool = option(
        False,
        "Convert the text model alone of one that sees or hears.",
        doc="Convert the text model alone where the output has no place for the model's other parts (a vision tower "
        "…); without it that is refused.",
    )
    allow_overflow: bool = option(
        False,
        "Accept infinities after the cast.",
        doc="Accept values that become infinite in the target dtype.",
    )
    kv_bits: int | None = option(
        None,
        "Bits of the cache that generate will use.",
        doc="Bits of a quantized key-value cache, recorded for ``mlxport generate`` and ``chat``; None for none.",
        panel=_CACHE,
    )
    kv_group_size: int | None = option(
        None,
        "Group size of a quantized cache [64].",
        doc="Its group size; 64 if None.",
        panel=_CACHE,
    )
    quantized_kv_start: int | None = option(
        None,
        "Tokens after which it is quantized.",
        doc="Tokens from which on it is quantized; mlx-lm's own number if None.",
        panel=_CACHE,
    )
    report: bool = option(
        False,
        "Measure what was lost: DST/report.html and .json.",
        doc="Measure what was lost, and put ``report.html`` and ``report.json`` into the output.",
        panel=_REPORT,
    )
    report_device: str | None = option(
        None,
        'A Mac to predict for in the report, as in "M2 8GB".',
        doc='A Mac to predict the speed for in the report, such as ``"M2 8GB"``.',
        check=_check_machine,
        panel=_REPORT,
    )
    revision: str | None = option(None, "Branch, tag or commit of a hub repository.")
    trust_remote_code: bool = option(
        False,
        "Allow code of the checkpoint to run.",
        doc="Allow code of the checkpoint to run (tokenizer, reference model).",
    )

    def __post_init__(self) -> None:
        if self.report_device is not None and not self.report:
            raise UsageError("--report-device has no effect without --report", hint="add --report")
        self._check_direction()
        super().__post_init__()
        # Which of the layouts of ports ``generated`` means, the checkpoint says.
        if self.layout != table.AUTO and not (self.layout == GENERATED.name and self.cache):
            check_layout(self, table.named(self.layout))

    def _check_direction(self) -> None:
        if self.to != TO_MLX and self.layout not in (table.AUTO, self.to):
            hint = "leave --layout out: that of the MLX folder is known"
            raise UsageError(f"--to {self.to} and --layout {self.layout} name two layouts", hint=hint)
        if self.against is not None and HUGGING_FACE.name not in (self.to, self.layout):
            raise UsageError("--against has no effect without --to hf", hint="add --to hf, or leave --against out")


def check_layout(options: ConvertOptions, layout: Layout) -> None:
    """Refuse what a layout has no use for.

    Raises:
        UsageError: An option is given that it refuses.
    """
    for refusal in layout.refuses:
        if given := [text for option in refusal.options if (text := _given(options, option))]:
            raise UsageError(refusal.message.format(given=", ".join(given)), hint=refusal.hint)


def _given(options: ConvertOptions, name: str) -> str:
    """An option as the command line spells it, with its text; empty where it is not given."""
    (known,) = (option for option in declared(options) if option.name == name)
    value = getattr(options, name)
    if value == known.default or value == _NOTHING.get(name):
        return ""
    on, _, off = known.flags[-1].partition("/")
    return off if value is False else f"{on} {value}" if isinstance(value, str | Path) else on

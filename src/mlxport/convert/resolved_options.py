"""What follows from the options of ``convert`` or ``port``, worked out once: what the steps read."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlxport.allocate import Target, make_target
from mlxport.calibrate.calibration_text import Calibration, calibrated_request, read_calibration, refuse_quantizer
from mlxport.convert.options import TO_MLX, ConvertOptions, SharedOptions
from mlxport.distill import DistillSettings
from mlxport.layouts.generated.layout import GENERATED
from mlxport.layouts.table import AUTO, named
from mlxport.options.size_spec import SizeSpec
from mlxport.quant import QuantRequest, make_request
from mlxport.run.kv import KVQuant, make_kv

if TYPE_CHECKING:
    from mlxport.allocate import AllocationReport
    from mlxport.layouts.base import Layout
    from mlxport.types import Checkpoint

__all__ = ["ResolvedOptions", "resolve", "resolve_port"]


@dataclass(frozen=True, kw_only=True)
class ResolvedOptions(ConvertOptions):
    """The options with what follows from them; ``dtype`` and ``layout`` become the ones that ``auto`` or a limit means.

    Attributes:
        quant: How modules are quantized, None for not at all.
        limit: What the settings are to be chosen under, None without a limit.
        allocation: What they were chosen by, once they are.
        calibration: The text to calibrate on, None without calibration.
        training: How scales and biases are trained, None without training.
        kv: The key-value cache that the output is to be used with, None for mlx-lm's own.
        made_by: The layout of the source, where that is an MLX folder to be brought back.
        original: What it was made from, where that is at hand.
    """

    quant: QuantRequest | None = None
    limit: Target | None = None
    allocation: AllocationReport | None = None
    calibration: Calibration | None = None
    training: DistillSettings | None = None
    kv: KVQuant | None = None
    made_by: Layout | None = None
    original: Checkpoint | None = None

    def recorded(self) -> dict[str, Any]:
        """The options that decide the bytes of the output, and how to capture the original again."""
        flags = () if self.layout == AUTO else named(self.layout).records
        return {
            "dtype": self.dtype,
            "quantize": asdict(self.quant) if self.quant else None,
            "max_shard_size": self.max_shard_size,
            "shard_by": self.shard_by,
            "layout": self.layout,
            **({"text_only": True} if self.text_only else {}),
            **({"against": self.original.name} if self.original is not None else {}),
            **({"distill": asdict(self.training)} if self.training is not None else {}),
            **{name: _recorded(getattr(self, name)) for name in flags},
            **({"calibrate": self.calibration.recorded()} if self.calibration else {}),
        }


def _recorded(value: Any) -> bool | str:
    """What is recorded of an option of the generated layout: a switch, or sizes said by hand."""
    return str(value) if isinstance(value, SizeSpec) else value is True


def resolve(options: ConvertOptions) -> ResolvedOptions:
    """What follows from the options of ``convert``.

    Raises:
        UsageError: Options that contradict each other, or settings that do not exist.
    """
    limit = make_target(
        options.fit, options.context, options.target_size, options.target_bpw, options.quantizer,
        quantize=options.quantize, q_bits=options.q_bits, q_group_size=options.q_group_size, q_mode=options.q_mode,
        recipe=options.recipe,
    )  # fmt: skip
    calibration, quant = read_calibration(options.calibrate), None
    if limit is None:
        quant = calibrated_request(calibration, _request(options), options.quantizer)
    elif calibration is not None:
        refuse_quantizer(calibration, options.quantizer)
    training = None if options.distill is None else DistillSettings(options.distill)
    if training is not None and limit is None:
        training.check(quant)
    kv = make_kv(options.kv_bits, options.kv_group_size, options.quantized_kv_start)
    values = _values(options)
    if options.to != TO_MLX:
        values["layout"] = options.to
    return ResolvedOptions(**values, quant=quant, limit=limit, calibration=calibration, training=training, kv=kv)


def resolve_port(options: SharedOptions) -> ResolvedOptions:
    """What follows from the options of ``port_folder``.

    Raises:
        QuantizationError: Settings that contradict each other or do not exist.
    """
    return ResolvedOptions(
        **_values(options, SharedOptions), layout=GENERATED.name, allow_overflow=True, quant=_request(options)
    )


def _request(options: SharedOptions) -> QuantRequest | None:
    return make_request(
        options.quantize,
        bits=options.q_bits,
        group_size=options.q_group_size,
        mode=options.q_mode,
        recipe=options.recipe,
        quantizer=options.quantizer,
    )


def _values(options: SharedOptions, kind: type[SharedOptions] = ConvertOptions) -> dict[str, Any]:
    return {item.name: getattr(options, item.name) for item in dataclasses.fields(kind)}

"""Apple machines: memory, the part of it that the GPU may use, bandwidth; the data is in ``chips.json``."""

from __future__ import annotations

import difflib
import functools
import json
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from mlxport.errors import UsageError

__all__ = ["Decoding", "Machine", "decoding", "known_machines", "named_machine", "running_on", "this_machine"]

GIB = 2**30
# "M3 Max 16c/40g" is a variant of "M3 Max", which its memory size tells apart from the others.
_VARIANT = re.compile(r" (?:\d+c/)?\d+g$")
_MEMORY = re.compile(r"(?<![\w./])(\d+)\s*Gi?B\b", re.IGNORECASE)


@dataclass(frozen=True)
class Machine:
    """A Mac, as far as it decides what runs on it.

    Attributes:
        chip: As in ``chips.json``, such as ``M2`` or ``M3 Max 16c/40g``.
        memory_gb: Memory in GiB, as it is sold.
        gpu_bytes: What Metal recommends as the most that the GPU uses.
        bandwidth_gb_s: Memory bandwidth in 10⁹ bytes a second, None of a chip that the table does not have.
    """

    chip: str
    memory_gb: int
    gpu_bytes: int
    bandwidth_gb_s: float | None

    @property
    def name(self) -> str:
        """``M2 8GB``: what ``--device`` takes."""
        return f"{self.chip} {self.memory_gb}GB"


@functools.cache
def _table() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(files("mlxport.fit").joinpath("chips.json").read_text(encoding="utf-8"))
    return data


@dataclass(frozen=True, slots=True)
class Decoding:
    """What generating a token costs a chip, as published runs have it: best, usual and worst.

    Attributes:
        bandwidth_factor: Time to read the weights, in units of their bytes divided by the bandwidth.
        operation_seconds: Time of each operation of a step besides.
    """

    bandwidth_factor: tuple[float, float, float]
    operation_seconds: tuple[float, float, float]


def decoding(chip: str) -> Decoding:
    """What generating costs on a chip; those made of two dies take longer for each operation."""
    data = _table()["decoding"]
    kind = next((name for name in data["operation_us"] if name in chip.split()), "other")
    least, usual, most = data["operation_us"][kind]
    return Decoding(tuple(data["bandwidth_factor"]), (least * 1e-6, usual * 1e-6, most * 1e-6))


def known_machines(macos: int | None = None) -> tuple[Machine, ...]:
    """Every machine of the table, as it is under a version of macOS (None is the newest)."""
    return tuple(
        _machine(chip, size, macos) for chip, entry in _table()["chips"].items() for size in entry["memory_gb"]
    )


def gpu_bytes(memory_gb: int, macos: int | None = None) -> int:
    """The part of the memory that Metal lets the GPU use, in bytes.

    Args:
        memory_gb: Memory in GiB; a size that was not measured takes the share of the nearest below.
        macos: Major version, None for the newest; before 26 the shares were others.
    """
    older = macos is not None and macos < _table()["macos_of_working_set"]
    shares = _table()["gpu_working_set_fraction_older_macos" if older else "gpu_working_set_fraction"]
    sizes = sorted(map(int, shares))
    size = max((size for size in sizes if size <= memory_gb), default=sizes[0])
    return int(shares[str(size)] * memory_gb * GIB)


def _machine(chip: str, memory_gb: int, macos: int | None) -> Machine:
    bandwidth = _table()["chips"][chip]["bandwidth_gb_s"]
    if isinstance(bandwidth, dict):
        bandwidth = bandwidth[str(memory_gb)]
    return Machine(chip, memory_gb, gpu_bytes(memory_gb, macos), float(bandwidth))


def named_machine(text: str, macos: int | None = None) -> Machine:
    """The machine that ``--device`` names: ``M2 8GB``, ``m3-max 36gb``, ``M3 Max 16c/40g 64GB``.

    Args:
        text: Chip and memory; memory may be left out where the chip comes with one size only.
        macos: Major version of macOS, None for the newest.

    Raises:
        UsageError: No such chip, or it does not come with that memory; the message lists what there is.
    """
    found = _MEMORY.search(text)
    size = int(found[1]) if found else None
    chip = " ".join((text[: found.start()] + text[found.end() :] if found else text).replace("-", " ").split())
    chip = re.sub(r"^apple\s+", "", chip, flags=re.IGNORECASE)
    variants = _variants(chip)
    if not variants:
        raise _unknown(text, chip)
    sizes = sorted((size, variant) for variant in variants for size in _table()["chips"][variant]["memory_gb"])
    listed = ", ".join(f"{size} GB" for size, _ in sizes)
    name = variants[0] if len(variants) == 1 else _VARIANT.sub("", variants[0])
    if size is None and len(sizes) > 1:
        hint = f'say which, as in --device "{name} {sizes[0][0]}GB"'
        raise UsageError(f"--device {text!r} has no memory size: {name} comes with {listed}", hint=hint)
    chosen = [(memory, variant) for memory, variant in sizes if size is None or memory == size]
    if not chosen:
        close = min(sizes, key=lambda item: abs(item[0] - (size or 0)))[0]
        hint = f'choose one of them, as in --device "{name} {close}GB"'
        raise UsageError(f"--device {text!r}: {name} comes with {listed}, not with {size} GB", hint=hint)
    return _machine(chosen[0][1], chosen[0][0], macos)


def _variants(chip: str) -> list[str]:
    """The table's chips of a name: that one itself, or all variants of it."""
    chips = list(_table()["chips"])
    exact = [name for name in chips if name.lower() == chip.lower()]
    return exact or [name for name in chips if _VARIANT.sub("", name).lower() == chip.lower()]


def _unknown(text: str, chip: str) -> UsageError:
    bases = list(dict.fromkeys(_VARIANT.sub("", name) for name in _table()["chips"]))
    near = difflib.get_close_matches(chip.upper(), [base.upper() for base in bases], n=3, cutoff=0.5)
    close = [base for base in bases if base.upper() in near]
    sizes = _table()["chips"][next(name for name in _table()["chips"] if name.startswith((close or bases)[0]))]
    example = f"{(close or bases)[0]} {sizes['memory_gb'][0]}GB"
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    hint += f'write chip and memory, as in --device "{example}"'
    return UsageError(f"--device {text!r} names no chip of the table, which has {', '.join(bases)}", hint=hint)


def this_machine() -> Machine:
    """The Mac that this runs on, as macOS and Metal describe it.

    Raises:
        UsageError: It is no Mac with Apple silicon.
    """
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        raise UsageError(
            f"this machine is no Mac with Apple silicon ({platform.system()} {platform.machine()}), so there is none "
            "to plan for",
            hint='name one, as in --device "M2 8GB"',
        )
    import mlx.core as mx

    brand = _sysctl("machdep.cpu.brand_string").removeprefix("Apple ")
    memory_gb = round(int(_sysctl("hw.memsize")) / GIB)
    macos = int(platform.mac_ver()[0].split(".")[0] or 0) or None
    limit = mx.device_info().get("max_recommended_working_set_size")
    return described_machine(brand, memory_gb, macos, int(limit) if limit else None)


def running_on() -> str:
    """What MLX computes on where this runs, in a few words: ``Apple M2``, ``Linux, 2 cores``."""
    import mlx.core as mx

    if mx.default_device() == mx.gpu:
        return str(mx.device_info().get("device_name", "its GPU"))
    return f"{platform.system()}, {os.cpu_count()} cores"


def described_machine(brand: str, memory_gb: int, macos: int | None, limit: int | None) -> Machine:
    """A machine from what the system says of itself, whether or not the table has it.

    Args:
        brand: ``machdep.cpu.brand_string`` without "Apple".
        memory_gb: Memory in GiB.
        macos: Major version of macOS.
        limit: Metal's recommended working set in bytes, None where it gives none.
    """
    fitting = [name for name in _variants(brand) if memory_gb in _table()["chips"][name]["memory_gb"]]
    names = fitting or _variants(brand)
    known = names[0] if names else None
    bandwidth = _table()["chips"][known]["bandwidth_gb_s"] if known else None
    if isinstance(bandwidth, dict):
        bandwidth = bandwidth.get(str(memory_gb), min(bandwidth.values()))
    share = limit or gpu_bytes(memory_gb, macos)
    return Machine(known or brand, memory_gb, share, None if bandwidth is None else float(bandwidth))


def _sysctl(name: str) -> str:
    result = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=True)
    return result.stdout.strip()

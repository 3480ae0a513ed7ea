"""The table of Apple machines, and how one is named."""

from __future__ import annotations

import platform
import sys

import pytest

from mlxport.errors import UsageError
from mlxport.fit.hardware import (
    GIB,
    decoding,
    described_machine,
    gpu_bytes,
    known_machines,
    named_machine,
    this_machine,
)

NAMES = {
    "M2 8GB": ("M2", 8, 100),
    "m2-8gb": ("M2", 8, 100),
    " apple  M1 16 GB ": ("M1", 16, 68.25),
    "8GB M1": ("M1", 8, 68.25),
    "M1 Ultra 128GiB": ("M1 Ultra", 128, 800),
    "M3 8GB": ("M3", 8, 100),
    "M3 Max 36GB": ("M3 Max 14c/30g", 36, 300),
    "m3-max-48gb": ("M3 Max 16c/40g", 48, 400),
    "M3 Max 14c/30g 96GB": ("M3 Max 14c/30g", 96, 300),
    "M4 Max 14c/32g": ("M4 Max 14c/32g", 36, 410),
    "M6 16GB": ("M6", 16, 153),
    "M6 32GB": ("M6", 32, 170),
}


@pytest.mark.parametrize("text", NAMES)
def test_a_machine_by_name(text):
    machine = named_machine(text)
    assert (machine.chip, machine.memory_gb, machine.bandwidth_gb_s) == NAMES[text]
    assert named_machine(machine.name) == machine


def test_every_machine_of_the_table_has_a_name_and_less_for_the_gpu_than_there_is():
    machines = known_machines()
    assert len({machine.name for machine in machines}) == len(machines) > 50
    for machine in machines:
        assert named_machine(machine.name) == machine
        assert 0.6 < machine.gpu_bytes / (machine.memory_gb * GIB) < 0.92
        assert machine.bandwidth_gb_s is not None and 60 < machine.bandwidth_gb_s < 1300
    assert {machine.chip[:2] for machine in machines} == {f"M{number}" for number in range(1, 7)}


SHARES = {8: 0.67, 16: 0.74, 18: 0.74, 24: 0.74, 32: 0.78, 36: 0.78, 48: 0.78, 64: 0.81, 96: 0.81, 128: 0.84, 192: 0.84,
          256: 0.84, 512: 0.91}  # fmt: skip


@pytest.mark.parametrize("memory", SHARES)
def test_the_share_of_the_gpu(memory):
    assert gpu_bytes(memory) == int(SHARES[memory] * memory * GIB) == gpu_bytes(memory, 26)
    assert gpu_bytes(memory, 15) == int((0.67 if memory <= 32 else 0.75) * memory * GIB)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("M9 8GB", "names no chip of the table, which has M1, M1 Pro, M1 Max", 'as in --device "M'),
        ("M2 Prro 16GB", "names no chip", "did you mean M2 Pro"),
        ("Intel 16GB", "names no chip", 'write chip and memory, as in --device "M1 8GB"'),
        ("", "names no chip", "write chip and memory"),
        ("M2 12GB", "M2 comes with 8 GB, 16 GB, 24 GB, not with 12 GB", 'as in --device "M2 8GB"'),
        ("M3 Max 40GB", "M3 Max comes with 36 GB, 48 GB, 64 GB, 96 GB, 128 GB, not with 40 GB", '"M3 Max 36GB"'),
        ("M2", "has no memory size: M2 comes with 8 GB, 16 GB, 24 GB", 'say which, as in --device "M2 8GB"'),
    ],
)
def test_what_is_no_machine(text, message, hint):
    with pytest.raises(UsageError) as caught:
        named_machine(text)
    assert message in caught.value.message and repr(text) in caught.value.message
    assert hint in caught.value.hint


def test_a_machine_as_the_system_describes_it():
    known = described_machine("M3 Max", 48, 26, 40_000_000_000)
    assert known.name == "M3 Max 16c/40g 48GB"
    assert (known.gpu_bytes, known.bandwidth_gb_s) == (40_000_000_000, 400)
    assert described_machine("M2", 16, 15, None).gpu_bytes == gpu_bytes(16, 15)
    unknown = described_machine("M9", 16, 27, None)
    assert (unknown.name, unknown.gpu_bytes, unknown.bandwidth_gb_s) == ("M9 16GB", gpu_bytes(16), None)
    assert described_machine("M6", 64, 27, None).bandwidth_gb_s == 153


def test_this_machine():
    if sys.platform == "darwin" and platform.machine() == "arm64":
        machine = this_machine()
        assert 0 < machine.gpu_bytes <= machine.memory_gb * GIB
        return
    with pytest.raises(UsageError, match="no Mac with Apple silicon") as caught:
        this_machine()
    assert "--device" in caught.value.hint


@pytest.mark.parametrize("chip", ["M1", "M3 Max 16c/40g", "M9", "M2 Ultra"])
def test_the_range_of_speeds(chip):
    costs = decoding(chip)
    assert costs.bandwidth_factor == (1.05, 1.1, 1.32)
    assert list(costs.operation_seconds) == sorted(costs.operation_seconds)
    assert costs.operation_seconds[1] == pytest.approx(4.2e-6 if chip == "M2 Ultra" else 3.2e-6)

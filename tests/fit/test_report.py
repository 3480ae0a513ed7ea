"""Which row a plan recommends."""

from __future__ import annotations

import json

import pytest

from mlxport.fit.fit_report import FitReport, FitRow, recommended
from mlxport.fit.hardware import named_machine


def row(bits: float, spare: int = 1, speed: float | None = 50.0, **changes: object) -> FitRow:
    name = f"{bits:g} bits"
    rate = None if speed is None else (speed, 1.5 * speed)
    values = dict(bits_per_weight=bits, disk_bytes=int(bits * 1000), spare_bytes=spare, tokens_per_second=rate)
    return FitRow(name, f"{bits:g}", **{**values, **changes})  # type: ignore[arg-type]


def report(*rows: FitRow) -> FitReport:
    return FitReport("org/model", named_machine("M2 8GB"), 4096, None, None, "", rows)


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([row(16), row(8.5), row(4.5)], "16 bits"),  # the most bits where all are fast
        ([row(16, speed=10), row(8.5, speed=19), row(4.5, speed=30)], "4.5 bits"),
        ([row(16, -1), row(8.5, speed=21), row(4.5, speed=40)], "8.5 bits"),
        ([row(6.5, speed=8), row(5.5, speed=9.4), row(4.5, speed=10), row(2.5, speed=15)], "5.5 bits"),  # all slow
        ([row(16, -9), row(4.5, -1), row(3.5), row(2.5)], "3.5 bits"),  # only little fits
        ([row(4.5, speed=None), row(8.5, speed=None)], "8.5 bits"),  # an unknown chip
        ([row(16, -9), row(4.5, -1), row(2.5, -1)], ""),
        ([row(16, problem="no"), row(8.5, speed=5, problem="no"), row(4.5)], "4.5 bits"),
    ],
)
def test_the_recommendation_is_first(rows, best):
    found = recommended(report(*rows))
    assert found.recommended == best
    assert sorted(found.rows, key=str) == sorted(rows, key=str)
    if best:
        assert found.rows[0].name == best and found.rows[0].fits
    others = [each.bits_per_weight for each in found.rows[bool(best) :] if not each.problem]
    assert others == sorted(others, reverse=True)


def test_json():
    found = report(row(4.5, -5, cache_bytes=7, workspace_bytes=8), row(2.5)).to_json()
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(found))
    assert found["machine"]["chip"] == "M2" and not found["rows"][0]["fits"]
    assert found["rows"][0]["memory_bytes"] == 4500 + 15

from __future__ import annotations

import numpy as np
import pytest

from mlxport.parity.metrics import compare_logits, relative_error
from mlxport.parity.parity_report import ParityReport
from mlxport.quant.tolerances import ROWS, STORED_WEIGHT_BOUND, lossless, row_for

RNG = np.random.default_rng(0)
REFERENCE = RNG.standard_normal((70, 40)).astype(np.float32)  # more rows than one block of the sums
SAME = ROWS["same weights"]


def test_figures_of_equal_arrays():
    found = compare_logits("a", REFERENCE, REFERENCE, SAME)
    assert (found.max_abs, found.relative, found.top1, found.kl_mean) == (0, 0, 1, 0)
    assert found.passed and found.positions == 70


def test_figures_against_their_definitions():
    output = REFERENCE + 0.1 * RNG.standard_normal(REFERENCE.shape).astype(np.float32)
    found = compare_logits("a", output, REFERENCE, SAME)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (REFERENCE.astype(np.float64), output))
    assert found.kl_mean == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-6)
    assert found.max_abs == pytest.approx(np.abs(output - REFERENCE).max())
    assert found.top1 == np.mean(output.argmax(-1) == REFERENCE.argmax(-1))
    assert not found.passed and any("relative" in line for line in found.failures)


def test_a_constant_offset_of_a_row_changes_nothing_that_counts():
    found = compare_logits("a", REFERENCE + 5, REFERENCE, SAME)
    assert found.passed and found.max_abs == pytest.approx(5, rel=1e-5)


def test_a_common_offset_does_not_hide_garbage():
    garbage = 100 + RNG.standard_normal(REFERENCE.shape).astype(np.float32)
    assert abs(compare_logits("a", garbage, 100 + REFERENCE, SAME).cosine_mean) < 0.2


@pytest.mark.parametrize("row", [row for row in ROWS if row != "2 bits"])
def test_garbage_fails_every_row_that_judges_quality(row):
    garbage = RNG.standard_normal((400, 300)).astype(np.float32) * 0.05  # nearly uniform: its KL is small
    reference = RNG.standard_normal((400, 300)).astype(np.float32) * 0.05
    assert not compare_logits("a", garbage, reference, ROWS[row]).passed


@pytest.mark.parametrize(
    ("output", "reference", "said"),
    [
        (REFERENCE[:, :-1], REFERENCE, "shape (70, 39), expected (70, 40)"),
        (np.where(REFERENCE > 3, np.nan, REFERENCE), REFERENCE, "of the output are NaN or inf"),
        (REFERENCE, np.where(REFERENCE > 3, np.inf, REFERENCE), "of the original are NaN or inf"),
    ],
)
def test_shape_and_nan_come_before_values(output, reference, said):
    found = compare_logits("a", output, reference, SAME)
    assert not found.passed and said in found.failures[0]
    assert found.to_json()["relative"] is None


def test_relative_error():
    assert relative_error(REFERENCE * 1.5, REFERENCE) == pytest.approx(0.5, rel=1e-5)
    assert relative_error(np.zeros(3), np.zeros(3)) == 0
    assert relative_error(np.ones(3), np.zeros(3)) == float("inf")
    assert relative_error(np.full(3, np.nan), np.ones(3)) == float("inf")


@pytest.mark.parametrize(
    ("sources", "stored", "level", "row"),
    [
        ({"BF16"}, {"BF16"}, None, "same weights"),
        ({"F16", "BF16"}, {"F32"}, None, "same weights"),
        ({"F32", "BF16"}, {"F32", "BF16"}, None, "same weights"),
        ({"F32"}, {"BF16"}, None, "bfloat16"),
        ({"F32"}, {"F16"}, None, "float16"),
        ({"BF16"}, {"F16"}, None, "float16"),
        ({"BF16"}, {"BF16"}, 4, "4 bits"),
        ({"BF16"}, {"BF16"}, 7, "mxfp8"),
    ],
)
def test_the_row_of_the_table(sources, stored, level, row):
    assert row_for(frozenset(sources), frozenset(stored), level).row == row


def test_rows_are_ordered_and_give_reasons():
    assert all(row.reason for row in ROWS.values())
    bounds = [STORED_WEIGHT_BOUND[f"{bits} bits"] for bits in (8, 6, 5, 4, 3, 2)]
    assert bounds == sorted(bounds)
    assert lossless("BF16", "F32") and not lossless("BF16", "F16") and not lossless("F32", "BF16")


def test_a_passing_report_has_no_failure_message():
    assert ParityReport("full", "float32", None, 1, (), True).failure_message() == ""

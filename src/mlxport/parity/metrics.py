"""Figures of two logit arrays, held against a row of the tolerance table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mlxport.parity.parity_report import Comparison
from mlxport.quant.tolerances import AT_LEAST, Tolerance

__all__ = ["compare_logits", "held_against", "relative_error"]

_ROWS = 64  # positions at a time: float64 copies of whole logit arrays would cost gigabytes


def relative_error(output: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> float:
    """RMS of the difference over RMS of the reference; inf where either has NaN or inf."""
    difference = float(np.sqrt(np.mean(np.square(output - reference, dtype=np.float64))))
    scale = float(np.sqrt(np.mean(np.square(reference, dtype=np.float64))))
    if not np.isfinite(difference + scale):
        return float("inf")
    return difference / scale if scale > 0 else (0.0 if difference == 0 else float("inf"))


def _unusable(name: str, tolerance: Tolerance, problem: str, positions: int) -> Comparison:
    nan = float("nan")
    return Comparison(
        name, positions, nan, nan, nan, nan, nan, nan, nan, False, dict(tolerance.required), tolerance.row,
        tolerance.reason, (problem,),
    )  # fmt: skip


def _log_softmax(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    shifted = rows - rows.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _figures(output: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> dict[str, float]:
    """Sums over blocks of positions, in float64."""
    size, rows = reference.size, reference.shape[0]
    max_abs = abs_sum = error = scale = kl = same = 0.0
    cosines: list[float] = []
    for start in range(0, rows, _ROWS):
        out = output[start : start + _ROWS].astype(np.float64)
        ref = reference[start : start + _ROWS].astype(np.float64)
        gap = np.abs(out - ref)
        max_abs, abs_sum = max(max_abs, float(gap.max())), abs_sum + float(gap.sum())
        # Softmax does not see a shift of a row, and a common offset would make any two rows look alike.
        o, r = out - out.mean(-1, keepdims=True), ref - ref.mean(-1, keepdims=True)
        error, scale = error + float(np.square(o - r).sum()), scale + float(np.square(r).sum())
        norms = np.linalg.norm(o, axis=-1) * np.linalg.norm(r, axis=-1)
        cosines += np.where(norms > 0, (o * r).sum(-1) / np.where(norms > 0, norms, 1), gap.max(-1) == 0).tolist()
        p, q = _log_softmax(ref), _log_softmax(out)
        kl += float((np.exp(p) * (p - q)).sum())
        picked = np.take_along_axis(ref, out.argmax(-1)[:, None], -1)[:, 0]
        tie = 1e-4 * np.sqrt(np.square(r).mean(-1))
        same += float((picked >= ref.max(-1) - tie).sum())
    return {
        "max_abs": max_abs,
        "mean_abs": abs_sum / size,
        "relative": (error / scale) ** 0.5 if scale else (0.0 if error == 0 else float("inf")),
        "cosine_min": min(cosines),
        "cosine_mean": sum(cosines) / rows,
        "top1": same / rows,
        "kl_mean": max(kl / rows, 0.0),
    }


def _broken(figures: dict[str, float], bounds: dict[str, float]) -> tuple[str, ...]:
    lines = []
    for figure, bound in bounds.items():
        value = figures[figure]
        if figure in AT_LEAST and not value >= bound:
            lines.append(f"{figure} {value:.6g} is below {bound:g}")
        elif figure not in AT_LEAST and not value <= bound:
            lines.append(f"{figure} {value:.6g} is above {bound:g}")
    return tuple(lines)


def compare_logits(
    name: str, output: np.ndarray[Any, Any], reference: np.ndarray[Any, Any], tolerance: Tolerance
) -> Comparison:
    """Compare logits of shape [positions, vocabulary]: shape first, then NaN and inf, then values."""
    if output.shape != reference.shape:
        return _unusable(name, tolerance, f"logits have shape {output.shape}, expected {reference.shape}", 0)
    for side, logits in (("output", output), ("original", reference)):
        bad = int(logits.size - np.isfinite(logits).sum())
        if bad:
            return _unusable(name, tolerance, f"{bad} logits of the {side} are NaN or inf", logits.shape[0])
    figures = _figures(output, reference)
    failures, warnings = _judged(figures, tolerance)
    return Comparison(
        name=name,
        positions=int(reference.shape[0]),
        passed=not failures,
        thresholds=dict(tolerance.required),
        row=tolerance.row,
        reason=tolerance.reason,
        failures=failures,
        warnings=warnings,
        **figures,
    )


def held_against(known: Comparison, name: str, tolerance: Tolerance) -> Comparison:
    """A comparison that has been made, under another name and held against another row; unusable ones stay failed."""
    figures = {figure: getattr(known, figure) for figure in {*tolerance.required, *tolerance.expected}}
    failures, warnings = _judged(figures, tolerance)
    if any(value != value for value in figures.values()):
        failures = known.failures
    return replace(
        known, name=name, passed=not failures, thresholds=dict(tolerance.required), row=tolerance.row,
        reason=tolerance.reason, failures=failures, warnings=warnings,
    )  # fmt: skip


def _judged(figures: dict[str, float], tolerance: Tolerance) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The bounds that do not hold: those that must, and where these do those that should."""
    failures = _broken(figures, dict(tolerance.required))
    return failures, () if failures else _broken(figures, dict(tolerance.expected))

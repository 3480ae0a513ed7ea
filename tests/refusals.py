"""What a refused command must look like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from command import Result


@dataclass(frozen=True)
class Case:
    """One way to break a checkpoint, or to ask for what cannot be.

    Attributes:
        name: Of the case.
        break_it: Changes the source folder; None leaves it alone.
        named: What the error must name.
        options: Of the command.
        code: Exit code.
    """

    name: str
    break_it: Callable[[Path], object] | None
    named: tuple[str, ...]
    options: tuple[str, ...] = ()
    code: int = 1


def check_error(result: Result, case: Case) -> None:
    """One error line that names what it must, one hint line, no traceback."""
    lines = result.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    hints = [line for line in lines if line.startswith("hint: ")]
    assert result.code == case.code, result
    assert len(errors) == 1 and len(hints) == 1, result.err
    assert "Traceback" not in result.out + result.err
    assert "bug in mlxport" not in result.err, result.err
    for name in case.named:
        assert name in errors[0] + hints[0], result.err
    assert result.out == ""

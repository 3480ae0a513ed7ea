"""Whatever a checkpoint says, nothing that is printed moves a cursor or fills a screen."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.markup import escape
from rich.table import Table

from mlxport.cli.show.console import standard_console
from mlxport.errors import ConfigError, MlxportError
from mlxport.printable import printable, write_generated
from mlxport.progress import make_progress

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\x00\r"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def harmless(text: str) -> bool:
    return all(char.isprintable() or char in "\n\t" for char in text)


@given(st.text(alphabet=st.characters(codec=None)))
def test_any_text_becomes_printable_and_stays_so(text):
    shown = printable(text)
    assert harmless(shown) and shown.encode() == shown.encode("utf-8", "replace") and printable(shown) == shown
    assert shown == text or not harmless(text)


@pytest.mark.parametrize("text", ["x" * 10**6, "y\n" * 10**6, EVIL * 10**5])
def test_what_is_too_long_is_cut_in_the_middle(text):
    shown = printable(f"begin {text} end")
    assert len(shown) < 50_000 and max(map(len, shown.split("\n"))) < 1_100
    assert shown.startswith("begin ") and shown.endswith(" end") and "characters" in shown


def test_an_error_is_printable_however_it_is_printed():
    error = ConfigError(f"model_type {EVIL}{'x' * 10**6}", hint=f"delete {EVIL}")
    for text in (error.message, error.hint, str(error), repr(error), json.dumps(error.message)):
        assert harmless(text) and len(text) < 2_000
    assert "\\x1b]0;owned\\x07" in error.message
    assert MlxportError("two\nlines, ünïcode 🤖").message == "two\nlines, ünïcode 🤖"


def test_a_console_prints_no_escape_of_others():
    out = io.StringIO()
    console = standard_console(file=out, force_terminal=False)
    table = Table(title=EVIL)
    table.add_column(EVIL)
    table.add_row(EVIL)
    table.add_row(escape(f"[bold]{EVIL}[/]"))
    console.print(table, escape(EVIL), EVIL)
    console.print(escape("[red]\x1b[31m[/red] :cat:"))
    assert harmless(out.getvalue())
    assert "[bold]\\x1b]0" in out.getvalue() and "[red]\\x1b[31m[/red] :cat:" in out.getvalue()


def test_progress_prints_none_either():
    for out in (io.StringIO(), Terminal()):
        with make_progress(10, f"converting {EVIL}", stream=out) as progress:
            progress.message(f"warning: {EVIL}")
            progress.stage(f"verifying {EVIL}", 5)
            progress.advance(5)
        for sequence in ("\x1b]0", "\x07", "\x1b[2J\x9b", "\u202e", "\x00"):
            assert sequence not in out.getvalue()
        assert "warning: \\x1b]0;owned" in out.getvalue()


@pytest.mark.parametrize(
    ("text", "piped", "shown"),
    [("    if x:\n\ty = '🏳️\u200d🌈'\n",) * 3,
     ("a\x1b[31mb\x9bc", "a\\x1b[31mb\\x9bc", "a\\x1b[31mb\\x9bc"),
     ("a\x07\r\x00b\x7f", "a\x07\r\x00b\x7f", "a\\x07\\r\\x00b\\x7f")],
    ids=["plain", "escapes", "other controls"],
)  # fmt: skip
def test_generated_text(text, piped, shown):
    for out, expected in ((io.StringIO(), piped), (Terminal(), shown)):
        write_generated(text, out)
        assert out.getvalue() == expected


def test_libraries_log_and_warn_printably():
    code = "import logging, warnings; from mlxport.cli.app import _printable_logs; _printable_logs()\n"
    code += f"logging.getLogger('transformers').error('model %s', {EVIL!r}); warnings.warn({EVIL!r})\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert harmless(done.stderr) and done.stderr.count("\\x1b]0;owned") >= 2, done.stderr
    assert logging.getLogRecordFactory() is logging.LogRecord


@pytest.mark.parametrize("flags", [(), ("-v",), ("--json",)])
def test_the_command_line_prints_no_escape(flags, source, mlxport):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(
        json.dumps({**config, "dtype": EVIL, "quantization_config": {"quant_method": EVIL}})
    )
    for command in (
        ("inspect", source),
        ("convert", source, source.with_name("out"), "--verify", "none"),
        ("plan", EVIL),
    ):
        result = mlxport(*command, *(flag for flag in flags if flag != "--json" or command[0] != "plan"))
        assert harmless(result.out + result.err), (command, result)
        assert "bug in mlxport" not in result.err

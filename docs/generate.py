"""Fill the blocks of the documentation that are made from the code.

python docs/generate.py            # write them
python docs/generate.py --check    # name those that are out of date

A block stands between ``<!-- made: NAME -->`` and ``<!-- end -->``; ``BLOCKS`` says what makes it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src" / "mlxport"
PAGES = ("README.md", "CONTRIBUTING.md", "docs/api.md", "docs/reference.md", "docs/how-it-works.md")


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table in Markdown; a bar inside a cell is escaped."""
    lines = [head, tuple("---" for _ in head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def commands() -> dict[str, Any]:
    """The commands of the command line by name, as typer builds them."""
    import typer

    from mlxport.cli.app import app

    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def is_argument(parameter: Any) -> bool:
    """Whether it is given by its place, not by its name."""
    return bool(parameter.param_type_name == "argument")


def usage(name: str, command: Any) -> str:
    """``mlxport NAME`` with its arguments and the options that it cannot do without."""
    words = ["mlxport", name]
    for parameter in command.params:
        if is_argument(parameter):
            words.append(parameter.metavar)
        elif parameter.required:
            words += [max(parameter.opts, key=len), parameter.metavar or f"{parameter.name.upper()}"]
    return " ".join(words)


def shown_default(parameter: Any) -> str:
    """What an option is without being given; empty for nothing, and for a switch that is off."""
    value = parameter.default
    if parameter.secondary_opts:
        return f"`{(parameter.opts if value else parameter.secondary_opts)[0]}`"
    return "" if value is None or value is False or parameter.required else f"`{value}`"


def option_table(command: Any) -> str:
    """Every option of a command: how it is spelled, its default, what it does."""
    rows = []
    for parameter in command.params:
        if not is_argument(parameter):
            spelled = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
            rows.append((spelled, shown_default(parameter), parameter.help.replace("\\[", "[")))
    return table(("option", "default", ""), rows)


def command_table() -> str:
    """One line a command: its usage, and the first line of its help."""
    return table(
        ("command", ""), ((f"`{usage(name, one)}`", one.help.splitlines()[0]) for name, one in commands().items())
    )


def reference() -> str:
    """A section a command."""
    sections = []
    for name, one in commands().items():
        sections += [f"### {name}", f"    {usage(name, one)} [OPTIONS]", one.help, option_table(one)]
    return "\n\n".join(sections)


def keyword_table(kind: type) -> str:
    """Every keyword of ``convert`` or ``port_folder``: its default, its option, what it does."""
    from mlxport.options.option_field import declared

    rows = []
    for known in declared(kind):
        flags = [] if known.in_python_only else [f"`{flag}`" for flag in known.flags]
        default = "" if callable(known.default) else f"`{known.default!r}`"
        rows.append((f"`{known.name}`", default, ", ".join(flags), known.doc.replace("``", "`")))
    return table(("keyword", "default", "option", ""), rows)


def convert_keywords() -> str:
    """Those of ``mlxport.convert``."""
    from mlxport.convert.options import ConvertOptions

    return keyword_table(ConvertOptions)


def port_keywords() -> str:
    """Those of ``mlxport.port_folder``."""
    from mlxport.port.port_options import PortOptions

    return keyword_table(PortOptions)


def packages() -> dict[str, tuple[str, list[str]]]:
    """What each package says of itself, first line and ``Imports:``, by its name below ``mlxport``."""
    found = {}
    for file in sorted(SOURCES.rglob("__init__.py")):
        if file.parent != SOURCES:
            said = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
            imports = " ".join(said.partition("Imports:")[2].split()).rstrip(".")
            name = ".".join(file.parent.relative_to(SOURCES).parts)
            found[name] = (said.splitlines()[0], re.split(r",\s*", imports))
    return found


def in_order(found: dict[str, tuple[str, list[str]]]) -> list[str]:
    """Names such that a package comes after what it imports, and what a package holds after the package itself."""
    ordered: list[str] = []

    def place(name: str) -> None:
        if name in ordered or name not in found:
            return
        inner = [other for other in found if other.startswith(f"{name}.")]
        for other in found[name][1]:
            if not name.startswith(f"{other}."):
                place(other)
        around = name.rpartition(".")[0]
        if around and around not in ordered:
            place(around)
            return
        ordered.append(name)
        for other in inner:
            place(other)

    for name in found:
        place(name)
    return ordered


def rooms() -> str:
    """One line a package, in an order in which nothing comes before what it imports."""
    found = packages()
    rows = []
    for name in in_order(found):
        says, imports = found[name]
        own = [other for other in imports if other in found]
        rows.append((f"`{name.replace('.', '/')}/`", says.replace("``", "`"), " ".join(f"`{o}`" for o in own) or "–"))
    return table(("package", "what is in it", "imports"), rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "commands": command_table,
    "convert_keywords": convert_keywords,
    "port_keywords": port_keywords,
    "reference": reference,
    "rooms": rooms,
}
BLOCK = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The text of a page with every block made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]]()}\n\n{found[3]}", text)


def out_of_date() -> list[str]:
    """The pages that would change."""
    texts = {page: (ROOT / page).read_text("utf-8") for page in PAGES}
    return [page for page, text in texts.items() if filled(text) != text]


def main() -> None:
    """Write the pages, or say which are out of date."""
    changed = out_of_date()
    if "--check" in sys.argv:
        sys.exit(f"run python docs/generate.py: {', '.join(changed)}" if changed else 0)
    for page in changed:
        path = ROOT / page
        path.write_text(filled(path.read_text("utf-8")), encoding="utf-8")
        print(f"written: {page}")


if __name__ == "__main__":
    main()

"""The pages hold together: links, commands, files that they name, blocks made from the code, public names."""

from __future__ import annotations

import re
import sys
from datetime import date
from pathlib import Path

import pytest
from documents import PAGES, ROOT, commands, spelled_inline

import mlxport
from mlxport._version import __version__

sys.path.insert(0, str(ROOT / "docs"))

import generate  # noqa: E402

NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
SHORT = [name for name in NAMES if (ROOT / name).stat().st_size < 100_000]  # models.md is one table
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub and mkdocs make anchors of them."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("name", SHORT)
def test_every_link_leads_somewhere(name):
    page = ROOT / name
    for link in _LINK.findall(re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)):
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


@pytest.mark.parametrize("name", SHORT)
def test_every_command_parses(name):
    """By typer's own parser, placeholders as values; what running text leaves out may be missing there."""
    from mlxport.cli.derived_flags import with_bare_flags
    from mlxport.convert.options import ConvertOptions

    known = generate.commands()
    for words in commands(ROOT / name):
        if words[0] in known:
            known[words[0]].make_context(words[0], with_bare_flags(words, ConvertOptions)[1:])
        else:
            assert words == ["--help"] or words == ["--version"], words
    for words in spelled_inline(ROOT / name):
        if words[0] != "COMMAND":
            options = {spelled for one in known[words[0]].params for spelled in (*one.opts, *one.secondary_opts)}
            assert {word for word in words if word.startswith("-")} <= options, words


@pytest.mark.parametrize("words", [["--no-such"], ["--target-bpw", "x"]])
def test_a_wrong_command_does_not_parse(words):
    from mlxport.cli.app import _CLICK_ERROR

    with pytest.raises(_CLICK_ERROR):
        generate.commands()["convert"].make_context("convert", ["a", "b", *words])


def test_what_is_made_from_the_code_is_up_to_date():
    assert generate.out_of_date() == [], "run python docs/generate.py"


def test_every_block_is_on_a_page_that_is_written():
    there = {name for name in NAMES if "<!-- made: " in (ROOT / name).read_text("utf-8")}
    assert there == set(generate.PAGES)


def test_rooms_stand_after_what_they_import():
    found = generate.packages()
    order = generate.in_order(found)
    assert sorted(order) == sorted(found)
    for name in order:
        assert found[name][0] and found[name][1], name
        for other in found[name][1]:
            assert other not in found or name.startswith(f"{other}.") or order.index(other) < order.index(name)


def test_a_stale_block_is_noticed(monkeypatch):
    page = "a\n<!-- made: commands -->\n\nold\n\n<!-- end -->\nb\n"
    monkeypatch.setitem(generate.BLOCKS, "commands", lambda: "| new |")
    made = generate.filled(page)
    assert made == "a\n<!-- made: commands -->\n\n| new |\n\n<!-- end -->\nb\n"
    assert generate.filled(made) == made != page


def named_files(text: str) -> set[str]:
    """What a page writes as code and is the name of a file or folder."""
    found = re.findall(r"`([\w./-]+)`", text)
    return {
        name for name in found if name.endswith("/") or re.search(r"/.*\.\w+$|\w\.(py|json|md|toml|yml|jinja)$", name)
    }


def test_contributing_names_files_that_are_there():
    names = named_files((ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert len(names) > 20
    assert [name for name in names if not any((root / name).exists() for root in (ROOT, generate.SOURCES))] == []


def test_every_public_name_is_documented():
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    found = re.findall(r"^### mlxport\.(\w+)\n\n::: mlxport\.(\w+)$", page, flags=re.MULTILINE)
    wanted = {name for name in mlxport.__all__ if name not in mlxport.errors.__all__ and name != "__version__"}
    assert {name for name, _ in found} == wanted and len(found) == len(wanted)
    assert all(name == documented for name, documented in found)
    assert "::: mlxport.errors" in page


def test_the_changelog_is_kept():
    """As keepachangelog.com has it: the newest first, versions dated, what is not released above them."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    heads = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    assert heads[0] == "[Unreleased]"
    dated = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})", head) for head in heads[1:]]
    assert all(dated) and dated[0] is not None and dated[0][1] == __version__
    days = [date.fromisoformat(found[2]) for found in dated if found is not None]
    assert days == sorted(days, reverse=True)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, flags=re.MULTILINE)) <= kinds

"""What mkdocs is told besides mkdocs.yml: the pages in the repository's root, links out of ``docs/``, public names."""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Page of the site -> the file that it is; on GitHub both are read where they lie.
IN_ROOT = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
SOURCES = ROOT / "src"
PUBLIC = re.compile(r"^### mlxport\.(?P<path>\w+\.)?(?P<name>\w+)\n\n::: .*$", re.MULTILINE)
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root."""
    for page, file in IN_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text("utf-8")))
    return files


def parsed(module: str) -> ast.Module:
    """The source of a module."""
    path = SOURCES.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text("utf-8"))


def place(name: str, module: str) -> str:
    """The full name of what `module` calls `name`, where it is defined: a package may be called so too."""
    for node in parsed(module).body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return place(alias.name, node.module)
    return f"{module}.{name}"


def public_place(name: str) -> str:
    """Where a public name is defined, by the table from which ``mlxport`` imports it when it is first used."""
    for node in parsed("mlxport").body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_LAZY":
            table = ast.literal_eval(node.value)
            return place(name, table[name]) if name in table else f"mlxport.{name}"
    raise LookupError("src/mlxport/__init__.py has no table _LAZY")


def documented(found: re.Match[str]) -> str:
    """For a heading with a public name and its ``:::``: the block that mkdocstrings reads, under the public name."""
    path, name = (found["path"] or "").rstrip("."), found["name"]
    public = ".".join(filter(None, ["mlxport", path, name]))
    where = place(name, f"mlxport.{path}") if path else public_place(name)
    shown = {"heading": public, "toc_label": public, "show_root_heading": "true", "show_root_toc_entry": "true"}
    return "\n".join([f"::: {where}", "    options:", *(f"      {key}: {value}" for key, value in shown.items())])


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links where the site has them; those to files that it has not become their text."""
    folder = "." if page.file.src_uri in IN_ROOT else "docs"
    pages = {file: name for name, file in IN_ROOT.items()}

    def pointed(link: re.Match[str]) -> str:
        target, anchor = link["target"], link["anchor"] or ""
        if ":" in target:
            return link[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        name = pages.get(path, path.removeprefix("docs/"))
        if not (name in pages.values() or path.startswith("docs/")):
            return link["text"]
        return f"{link['image']}[{link['text']}]({name}{anchor})"

    return PUBLIC.sub(documented, LINK.sub(pointed, markdown))

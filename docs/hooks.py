"""What mkdocs is told besides mkdocs.yml: the pages that lie in the repository's root, and links out of ``docs/``."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Page of the site -> the file that it is; on GitHub both are read where they lie.
IN_ROOT = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root."""
    for page, file in IN_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text("utf-8")))
    return files


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

    return LINK.sub(pointed, markdown)

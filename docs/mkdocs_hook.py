"""MkDocs hook: pages are written for a repository's browser, and this makes a site of them."""  # noqa: INP001  # no package

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
BESIDE = ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "opendkim-examples/README.md")
"""Pages that are not in docs/."""
_LINK = re.compile(r"\]\((?!\w+:|#)([^)#]+)")
_ABOUT_A_TEST = re.compile(r"^(```\w+) client=\S+$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere."""
    for name in BESIDE:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Return a page as Python-Markdown reads it, with links between pages."""
    uri = page.file.src_uri
    folder = posixpath.dirname(uri if uri in BESIDE else f"docs/{uri}")

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, found[1])).removeprefix("docs/")
        return f"]({posixpath.relpath(target, posixpath.dirname(uri) or '.')}"

    return "\n".join(_indented(_ABOUT_A_TEST.sub(r"\1", _LINK.sub(link, markdown)).splitlines()))


def _indented(lines: list[str]) -> Iterator[str]:
    """Move what belongs to `1. ` from column three to four, where Python-Markdown wants it, and part items by a gap."""
    is_item = is_deeper = False
    for line in lines:
        begins = bool(re.match(r"\d+\. ", line))
        if begins and is_deeper:
            yield ""
        is_deeper = line.startswith("   ")
        is_item = begins or (is_item and (is_deeper or not line))
        yield f" {line}" if is_item and is_deeper else line

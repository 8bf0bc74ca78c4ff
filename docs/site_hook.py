"""What the site needs beside `docs/`: files from elsewhere in the repository, and links that still lead to them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
HOME = "README.md"
"""The site's first page."""
BESIDE = (
    HOME,
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "benchmarks/RESULTS.md",
    "notebooks/quickstart.ipynb",
    "recipes/tiny/README.md",
)
LINK = re.compile(r"(\[[^\]]*\]\()([^)#\s:]+)([^):\s]*\))")
"""A link or image to a file; web addresses have a colon."""


def site_path(path: str) -> str:
    """Where the site has a file of the repository."""
    return "index.md" if path == HOME else path.removeprefix("docs/")


def on_files(files: Files, config: Any) -> Files:
    """Add the files that are not in `docs/`."""
    for path in BESIDE:
        files.append(File.generated(config, site_path(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    own = page.file.src_uri
    here = next((path for path in BESIDE if site_path(path) == own), f"docs/{own}")

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), match[2]))
        return match[1] + posixpath.relpath(site_path(target), posixpath.dirname(own)) + match[3]

    return LINK.sub(moved, markdown)

"""What ``make docs`` adds to these pages: the files beside this folder that they link to."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
BESIDE = ("SECURITY.md", "CHANGELOG.md", "examples/*/*.py", "examples/*/conf/*/*.yaml", "notebooks/*.ipynb")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the files beside ``docs/`` in, under the names that they have from the root."""
    for path in sorted(path for pattern in BESIDE for path in ROOT.glob(pattern)):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links out of ``docs/`` and into it lead to where both lie in the built manual: in one folder."""
    return markdown.replace("](../", "](").replace("](docs/", "](")


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Docstrings name code with Sphinx's roles, which editors know and Markdown does not: the name alone stays."""
    return re.sub(r":(?:func|class|data|meth|mod|attr|exc):(?=<code>)", "", html)

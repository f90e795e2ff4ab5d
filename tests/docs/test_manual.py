"""``make docs``: every page is built, each link and name in it leads somewhere, nothing comes from the network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the manual is built with the extra docs")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built manual; a warning ends the build, as ``strict`` says."""
    folder = tmp_path_factory.mktemp("manual") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


def test_every_page_is_built_and_in_the_menu(site: Path) -> None:
    menu = (site / "index.html").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").is_file()
        assert f'href="{page.stem}.html"' in menu or page.stem == "index"
    assert (site / "SECURITY.html").is_file()
    assert (site / "examples" / "lovasz" / "lovasz.py").is_file()


def test_the_api_names_shapes_and_no_markup_of_another_tool(site: Path) -> None:
    text = (site / "api.html").read_text()
    assert 'id="protoseg.api.load"' in text
    assert 'id="protoseg.functional.prototypes.sinkhorn"' in text
    assert re.findall(r":(?:func|class|data|meth):", text) == []


def test_pages_open_without_the_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text())
        assert [address for address in loaded if "protoseg" not in address] == [], page

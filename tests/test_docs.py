"""The README is short, its links lead somewhere, and the documentation builds offline."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readme_has_at_most_a_thousand_words_and_a_picture():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 1000
    assert re.search(r"!\[[^]]+\]\(docs/images/\S+\.png\)", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_the_documentation_builds_strictly_and_without_a_network(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "maavt.load" in (tmp_path / "reference" / "index.html").read_text()
    assert "fonts.googleapis.com" not in (tmp_path / "index.html").read_text()


def test_every_page_of_the_documentation_is_in_its_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert all(f": {page.name}" in navigation for page in (ROOT / "docs").glob("*.md"))

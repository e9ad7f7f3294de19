"""Documents that say what is there: checked against what is there."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_command_reference_is_current(monkeypatch):
    spec = importlib.util.spec_from_file_location("commands_md", ROOT / "scripts" / "commands_md.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.TARGET.read_text(encoding="utf-8") == script.render(), "run `make docs`"


def tree_paths() -> list[str]:
    """Paths of the README's annotated tree; two spaces of indent are one level."""
    block = re.search(r"<!-- tree -->\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    paths, parents = [], []
    for line in block.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth:] = [name]
        paths.append("".join(parents))
    return paths


def test_the_tree_has_something_in_it():
    assert len(tree_paths()) > 10


@pytest.mark.parametrize("path", tree_paths())
def test_the_annotated_tree_names_what_exists(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_documents_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)|src=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
        path = target[0] or target[1]
        if "://" not in path:
            assert (page.parent / path).exists(), path


def test_make_targets_of_the_documents_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z]+)", page.read_text(encoding="utf-8"))) <= targets

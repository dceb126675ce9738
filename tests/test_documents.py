"""The documents: their links lead somewhere, and their configurations are taken."""

import re
from pathlib import Path

import pytest

from cluster.shared.config import load_config

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "deploy/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)


def _text(path: Path) -> str:
    """Return a document without its blocks of code, whose brackets are no links."""
    return re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def _anchors(path: Path) -> set[str]:
    """Return the names that links into a document may have, as hosting sites make them."""
    headings = re.findall(r"^#+ (.*)$", _text(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_somewhere(document: Path) -> None:
    path = ROOT / document
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", _text(path)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        if not linked.exists() or (anchor and anchor not in _anchors(linked)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_configurations_are_taken(document: Path, tmp_path: Path) -> None:
    text = (ROOT / document).read_text("utf-8")
    for block in re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        file = tmp_path / "cluster.toml"
        file.write_text(block, "utf-8")
        load_config(file, {})

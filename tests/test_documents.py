"""The documents: their links lead somewhere, their configurations are taken, and they name what
the code counts and why it ends sessions."""

import re
from pathlib import Path

import pytest

from cluster.gateway.links.handshake import LinkRefusal
from cluster.shared.causes import Cause
from cluster.shared.config_file import load_config
from cluster.shared.node_status import COUNTERS

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


def _section(document: str, heading: str) -> str:
    text = (ROOT / document).read_text("utf-8")
    return re.split(r"^## ", text.split(f"\n## {heading}\n")[1], flags=re.MULTILINE)[0]


def _counted() -> set[str]:
    """Return the names that the gateway's code counts by."""
    names = set()
    for path in (ROOT / "cluster" / "gateway").rglob("*.py"):
        code = path.read_text("utf-8")
        for call in re.findall(r"ounters\.add\(([^\n]*)", code):
            names.update(re.findall(r'(?<!f)"([a-z_]+)"', call))
        names.update(re.findall(r'counts\["([a-z_]+)"\]', code))
        names.update(re.findall(r'for name in \(("[a-z_]+"(?:, "[a-z_]+")*)\)', code))
    return {name for each in names for name in each.replace('"', "").split(", ")}


OF_WORKERS = {
    *("batches_waited", "coroutines_full", "coroutines_waited"),
    *("decode_errors", "tells_full", "unhandled_packets"),
}


def test_what_is_counted_is_told() -> None:
    counted = _counted()
    assert len(counted) > 60
    # What workers count comes by other ways.
    assert counted - COUNTERS == {"closed_application", "links_refused_node"}
    assert COUNTERS - counted == OF_WORKERS
    told = _section("docs/configuration.md", "Counters")
    named = set(re.findall(r"`([a-z_]+)`", told))
    assert COUNTERS | {"closed_application"} <= named
    assert {refusal.value for refusal in LinkRefusal} - named == set()


NOT_OF_SESSIONS = {
    # Of connects, and of connections between nodes.
    Cause.REFUSED,
    Cause.CANCELLED,
    Cause.NODE_LOST,
    # Of a mistake in a subclass of the library's sessions.
    Cause.BAD_CONSUME,
}


def test_causes_are_told() -> None:
    told = _section("docs/application.md", "Why a session has ended")
    named = {name for name in re.findall(r"`([a-z_]+)`", told) if name in set(Cause)}
    assert named == set(Cause) - NOT_OF_SESSIONS

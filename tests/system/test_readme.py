"""The README's application runs as printed, and its facts are those of the code."""

import re
import tomllib
from pathlib import Path

import msgspec

from cluster.shared.config import Config
from tests.system.cluster_node import ROOT
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient

README = (ROOT / "README.md").read_text("utf-8")


def _block(language: str, after: str) -> str:
    found = re.search(rf"{re.escape(after)}.*?```{language}\n(.*?)```", README, re.DOTALL)
    assert found, f"no {language} block after {after!r}"
    return found.group(1)


def test_the_application_of_the_readme_runs_as_printed(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    source = _block("python", "<!-- application: talk.py -->")
    assert len(source.splitlines()) <= 15
    (tmp_path / "talk.py").write_text(source, "utf-8")
    node = cluster_up("--app", "talk:app", cwd=tmp_path)
    with PacketClient(node.port) as one, PacketClient(node.port) as two:
        assert one.receive() == (1, b"welcome")
        assert two.receive() == (1, b"welcome")
        one.send(2, b"good morning")
        assert one.receive() == (2, b"good morning")
        assert two.receive() == (2, b"good morning")
    assert node.drain() == 0


def test_the_configuration_of_the_readme_is_the_default_one() -> None:
    shown = tomllib.loads(_block("toml", "## Configuration"))
    defaults = msgspec.to_builtins(Config())
    for section, keys in defaults.items():
        # `app`, `run_dir` and the addresses of links have no default that could be shown.
        expected = {key: value for key, value in keys.items() if value not in (None, [])}
        assert shown[section] == expected
    assert shown.keys() == defaults.keys()

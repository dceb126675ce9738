"""The guide: its code is one application that does what it says, and its page stays short."""

import asyncio
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cluster.testing import TestNode

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def hello(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The guide's code, one block after the other, as the one file that it is to be."""
    module = ModuleType("hello")
    monkeypatch.setitem(sys.modules, "hello", module)
    for block in blocks():
        exec(compile(block, str(GUIDE), "exec", dont_inherit=True), vars(module))
    return module


def test_the_code_of_the_guide_is_an_application(hello: ModuleType):
    assert hello.app.packet_handlers.keys() == {1, 2, 3, 4, 6, 7, 8, 9}
    hello.test_a_stranger_is_greeted()


def test_the_application_of_the_guide_does_what_the_guide_says(hello: ModuleType):
    class Database:
        async def owner_of(self, room: str) -> str:
            if room == "slow":
                await asyncio.sleep(60)
            return "ann"

    vars(hello)["database"] = Database()
    with TestNode(hello.app) as node:
        ann, bob, late = node.connect(), node.connect(), node.connect()
        ann.send(4, hello.Login("ann", "sesame"))
        bob.send(4, hello.Login("bob", "no idea"))
        assert ann.receive().decode(hello.Answer).text == "welcome, ann"
        assert (bob.receive().decode(hello.Answer).text, bob.cause) == ("wrong password", "kicked")
        ann.send(2, hello.Move(1, 2))
        assert ann.receive().decode(hello.Move) == hello.Move(2, 2)
        ann.send(3, hello.Room("garden"))
        assert ann.receive().decode(hello.Entered) == hello.Entered("ann")
        ann.send(8, hello.Room("garden"))
        ann.send(8, hello.Room("slow"))
        node.advance(2)
        assert [ann.receive().decode(hello.Answer).text for _ in range(2)] == ["ann", "not now"]
        ann.send(6)
        node.kill_worker()
        ann.send(6)
        node.advance(60)
        assert late.cause == "too late"
        ann.send(9, hello.Move(5, 5))
        node.advance(0.1)
        worlds = [ann.receive().decode(hello.World).pieces for _ in range(2)]
        assert [[round(piece.x, 6) for piece in pieces] for pieces in worlds] == [[5.1], [5.2]]
        ann.close()
        node.advance(0.1)
        assert hello.pieces == {}


def test_the_guide_is_ten_pages_at_most():
    lines = GUIDE.read_text("utf-8").splitlines()
    assert len(lines) <= 10 * 50


def test_what_the_guide_points_to_is_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", GUIDE.read_text("utf-8")):
        assert (GUIDE.parent / target).exists(), target

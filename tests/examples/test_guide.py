"""The guide: its code is one application that can be imported, and its page stays short."""

import re
from pathlib import Path
from typing import Any

from msgspec import Struct

from cluster.worker import App, BindResult, Session

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"


class Room(Struct):
    name: str


class Login(Struct):
    name: str


class Text(Struct):
    text: str = ""
    who: str = ""


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_the_code_of_the_guide_is_an_application():
    names: dict[str, Any] = {
        "App": App,
        "BindResult": BindResult,
        "Session": Session,
        **dict.fromkeys(("Entered", "Denied", "Welcome", "World"), Text),
        "Room": Room,
        "Login": Login,
        "pieces": {},
        "is_right": bool,
    }
    packet_ids: set[int] = set()
    apps: list[App] = []
    for block in blocks():
        exec(compile(block, str(GUIDE), "exec", dont_inherit=True), names)
        packet_ids |= names["app"].packet_handlers.keys()
        if names["app"] not in apps:
            apps.append(names["app"])
    assert packet_ids == {1, 2, 3, 4, 6, 7, 8}
    names["app"] = apps[0]  # the one whose handler the guide's test is about
    names["test_a_stranger_is_greeted"]()


def test_the_guide_is_ten_pages_at_most():
    lines = GUIDE.read_text("utf-8").splitlines()
    assert len(lines) <= 10 * 50


def test_what_the_guide_points_to_is_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", GUIDE.read_text("utf-8")):
        assert (GUIDE.parent / target).exists(), target

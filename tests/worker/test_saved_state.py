"""What handlers save for their shard: within bounds, and none of it by a call that raises."""

from typing import Any

import pytest

from cluster.shared.records import FORGET, KEEP, SAVE_BYTES_MAX
from cluster.worker import App, OutputTooLarge
from cluster.worker.outbox import Outbox
from cluster.worker.saved_state import SavedState


def make(
    saved: dict[str, bytes] | None = None, max_bytes: int = 1_000
) -> tuple[SavedState, Outbox]:
    outbox = Outbox(1 << 20)
    return SavedState(outbox, saved or {}, max_bytes), outbox


def test_what_is_saved_is_there_at_once_and_goes_out():
    state, outbox = make({"old": b"1"})
    state.save(b"new", b"2")
    state.save(b"old", b"3")
    state.forget(b"new")
    state.forget(b"nothing")
    assert dict(state.blobs) == {"old": b"3"}
    assert outbox.entries == [(KEEP, 0, b"\x03new2"), (KEEP, 0, b"\x03old3"), (FORGET, 0, b"new")]


def test_it_can_be_looked_at_only():
    state, _ = make({"name": b"1"})
    blobs: Any = state.blobs
    with pytest.raises(TypeError):
        blobs["name"] = b"2"
    with pytest.raises(TypeError):
        del blobs["name"]


def test_what_predecessors_saved_counts_and_what_is_forgotten_does_not():
    state, outbox = make({"a": b"x" * 371})
    with pytest.raises(ValueError, match=r"1001 bytes would be saved.*saved_bytes_max allows 1000"):
        state.save(b"b", b"y" * 372)
    assert dict(state.blobs) == {"a": b"x" * 371}
    assert outbox.entries == []
    state.save(b"b", b"y" * 371)
    state.forget(b"a")
    state.save(b"c", b"z" * 371)
    state.save(b"c", b"")
    state.save(b"b", b"y" * (1_000 - 2 * 129))
    with pytest.raises(ValueError, match="1001 bytes"):
        state.save(b"c", b"1")


def test_taken_back_it_is_as_it_was():
    state, outbox = make({"a": b"1", "b": b"2"})
    state.save(b"b", b"3")
    mark = outbox.mark()
    state.save(b"a", b"x" * 100)
    state.save(b"a", b"y")
    state.forget(b"b")
    state.save(b"new", b"z")
    state.forget(b"new")
    state.save(b"other", b"")
    outbox.take_back(mark)
    assert dict(state.blobs) == {"a": b"1", "b": b"3"}
    state.save(b"a", b"x" * (1_000 - 129 - 130))
    with pytest.raises(ValueError, match="1001 bytes"):
        state.save(b"a", b"x" * (1_001 - 129 - 130))


def test_the_largest_blob():
    state, _ = make(max_bytes=1 << 20)
    state.save(b"n" * 255, b"x" * SAVE_BYTES_MAX)
    with pytest.raises(ValueError, match=r"a blob of 65537 bytes.* at most 65536\. Save it in"):
        state.save(b"n", b"x" * (SAVE_BYTES_MAX + 1))


def test_what_does_not_fit_the_call_is_not_saved():
    outbox = Outbox(100)
    state = SavedState(outbox, {}, 1_000)
    with pytest.raises(OutputTooLarge):
        state.save(b"n", b"x" * 100)
    assert dict(state.blobs) == {}
    assert outbox.entries == []


@pytest.mark.parametrize(
    "use", [lambda app: app.save("n", b""), lambda app: app.forget("n"), lambda app: app.saved]
)
def test_it_needs_a_running_worker(use: Any):
    with pytest.raises(RuntimeError, match="works in a running worker only"):
        use(App())

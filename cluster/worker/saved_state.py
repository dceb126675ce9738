"""What a shard has saved for itself, as its worker's handlers see it.

A save is an output of the handler call that makes it: it goes out with the call's commit, and is
taken back if the call raises. The gateway keeps what is committed, for the next worker.
"""

from collections.abc import Mapping
from types import MappingProxyType

from cluster.shared.records import FORGET, KEEP, SAVE_BYTES_MAX
from cluster.shared.saved_records import pack_keep, saved_bytes
from cluster.worker.outbox import Outbox

__all__ = ["SavedState"]


class SavedState:
    """What one shard has saved. For the loop's thread."""

    __slots__ = ("_blobs", "_max_bytes", "_num_bytes", "_outbox", "blobs")

    def __init__(self, outbox: Outbox, saved: dict[str, bytes], max_bytes: int) -> None:
        """Go on with what predecessors have `saved`; save by `outbox`, at most `max_bytes`."""
        self._outbox = outbox
        self._blobs = saved
        self._max_bytes = max_bytes
        self._num_bytes = sum(saved_bytes(name.encode(), blob) for name, blob in saved.items())
        self.blobs: Mapping[str, bytes] = MappingProxyType(saved)
        """All that is saved, by names, what is not committed yet included."""

    def save(self, name: bytes, blob: bytes) -> None:
        """Save `blob` under `name`. Raises what `App.save` raises, but for what is no name."""
        if len(blob) > SAVE_BYTES_MAX:
            raise ValueError(
                f"a blob of {len(blob)} bytes; under one name a shard saves at most "
                f"{SAVE_BYTES_MAX}. Save it in parts, each under a name of its own"
            )
        before = self._blobs.get(name.decode())
        num_bytes = self._num_bytes + saved_bytes(name, blob) - saved_bytes(name, before)
        if num_bytes > self._max_bytes:
            raise ValueError(
                f"{num_bytes} bytes would be saved for this shard, and "
                f"workers.saved_bytes_max allows {self._max_bytes}; forget something, or raise it"
            )
        self._outbox.add(KEEP, 0, pack_keep(name, blob), (self._set, name, before))
        self._set(name, blob)

    def forget(self, name: bytes) -> None:
        """Have nothing under `name` any more. Raises what `App.forget` raises."""
        before = self._blobs.get(name.decode())
        if before is not None:
            self._outbox.add(FORGET, 0, name, (self._set, name, before))
            self._set(name, None)

    def _set(self, name: bytes, blob: bytes | None) -> None:
        text = name.decode()
        self._num_bytes += saved_bytes(name, blob) - saved_bytes(name, self._blobs.get(text))
        if blob is None:
            self._blobs.pop(text, None)
        else:
            self._blobs[text] = blob

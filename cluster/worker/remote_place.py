"""A machine that is not the gateway's: keys to be let in by, and notes that are read here.

What supervisor and gateway do for their workers on one machine is done here instead: a worker that
hangs ends itself, and what a life had in hand when it ended is told by the next one on the same
machine. See docs/decisions/0020-workers-on-other-machines.md.
"""

import logging
import mmap
import re
from pathlib import Path
from struct import Struct

import msgspec
import zmq

from cluster.iocp import NetAddress
from cluster.shared.config import WorkersConfig
from cluster.shared.endpoints import Endpoint
from cluster.shared.key_files import read_worker_keys
from cluster.shared.messages import Grant
from cluster.shared.note import NOTE_BYTES, NoteReader, NoteWriter, create_note, open_note
from cluster.shared.remote_endpoints import RemoteClient, lane_address
from cluster.shared.run_directory import RunDirectory
from cluster.shared.takeover import PAST_CALLS_MAX, PastCall
from cluster.worker.control_link import ZmqControlLink
from cluster.worker.gateway_contact import GatewayLostError
from cluster.worker.place import KeyRefusedError
from cluster.worker.watched_link import WatchedLink

__all__ = ["PastNotes", "RemotePlace"]

logger = logging.getLogger("cluster.worker")


LOCK_WAIT_S = 3.0
"""A predecessor that was killed is gone within this time."""

_EVENT = Struct("<H")
"""What a message of a socket's monitor begins with."""


class PastNotes:
    """The notes of one shard's lives on this machine, in a directory that this process has locked.

    There is one of each life that did not end in good order, until its successor was granted the
    shard.
    """

    def __init__(self, directory: Path, name: str) -> None:
        """Look after the notes in `directory` that begin with `name`."""
        self._directory = directory
        self._prefix = f"{name}-note-"
        self._current: Path | None = None

    def past_calls(self) -> list[PastCall]:
        """Return what is noted of lives that have ended, of the latest at least."""
        calls = []
        for path in self._paths()[-PAST_CALLS_MAX:]:
            nonce, _, incarnation = path.name.removeprefix(self._prefix).partition("-")
            try:
                calls.append(_past_call(int(nonce, 16), int(incarnation), path.read_bytes()))
            except (OSError, ValueError) as error:
                logger.warning("%s is no note: %s", path, error)
        return calls

    def begin(self, nonce: int, incarnation: int) -> NoteWriter | None:
        """Make the note of a life; those before it are told and go. None if that cannot be."""
        path = self._directory / f"{self._prefix}{nonce:016x}-{incarnation}"
        try:
            for past in self._paths():
                past.unlink()
            create_note(path).close()
            note = open_note(path)
        except OSError as error:
            logger.warning("what is in hand will not be known: no note %s (%s)", path, error)
            return None
        self._current = path
        return note

    def end(self) -> None:
        """The life has ended in good order: nobody is to be told of it."""
        if self._current is not None:
            self._current.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        paths = self._directory.glob(f"{self._prefix}*")
        return sorted(paths, key=lambda path: path.stat().st_mtime_ns)


def _past_call(nonce: int, incarnation: int, data: bytes) -> PastCall:
    """Return what a note with `data` tells of a life; raises ValueError for what is no note."""
    if len(data) != NOTE_BYTES:
        raise ValueError(f"{len(data)} bytes, not {NOTE_BYTES}")
    memory = mmap.mmap(-1, NOTE_BYTES)
    memory.write(data)
    reader = NoteReader(memory)
    noted = reader.read()
    reader.close()
    position, index, session = (0, 0, 0) if noted is None else noted[0]
    return PastCall(
        nonce=nonce, incarnation=incarnation, position=position, index=index, session=session
    )


class RemotePlace:
    """A machine with a key of its own, from which the gateway at an address is reached."""

    def __init__(
        self, gateway: NetAddress, keys_dir: Path, shard: int, directory: RunDirectory
    ) -> None:
        """Prepare to work on `shard` of the gateway at `gateway`, and keep notes in `directory`.

        Raises KeyFileError, RunDirectoryError, and OSError for a name that cannot be looked up.
        """
        self.where = f"tcp://{gateway}"
        self.timeout_s = WorkersConfig().worker_timeout_s
        self._keys_dir = keys_dir
        self._gateway = gateway.resolve()
        gateway_key, keys = read_worker_keys(keys_dir)
        is_ipv6 = ":" in self._gateway.host
        self._curve = RemoteClient(gateway_key, keys, self.timeout_s, is_ipv6=is_ipv6)
        directory.create()
        name = f"remote-{re.sub('[^A-Za-z0-9]+', '-', str(gateway))}-shard-{shard}"
        self._lock = directory.lock(name, LOCK_WAIT_S)
        self._notes = PastNotes(directory.path, name)
        self._monitor: zmq.Socket[bytes] | None = None
        self._control: zmq.Socket[bytes] | None = None
        self._failed_handshakes = 0

    def find_gateway(self) -> Endpoint:
        return Endpoint(f"tcp://{self._gateway}", self._curve)

    def watch(self, control: "zmq.Socket[bytes]") -> None:
        self._control = control
        self._monitor = control.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        )

    def past_calls(self) -> list[PastCall]:
        return self._notes.past_calls()

    def check(self) -> None:
        """Raise KeyRefusedError when the gateway has refused this worker's key."""
        while self._monitor is not None and self._monitor.poll(0):
            (event,) = _EVENT.unpack_from(self._monitor.recv_multipart()[0])
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                raise KeyRefusedError(
                    f"the gateway at {self.where} does not know the key in {self._keys_dir}: copy "
                    "its public part, the file NAME.key, into the gateway's remote.keys_dir"
                )
            self._failed_handshakes += 1

    @property
    def hint(self) -> str:
        if not self._failed_handshakes:
            return ""
        return (
            f"; handshakes that failed: {self._failed_handshakes}: is "
            f"{self._keys_dir / 'gateway.key'} the gateway's key, and {self.where} its "
            "remote.listen?"
        )

    def granted(self, grant: Grant) -> Grant:
        try:
            endpoint = lane_address(self._gateway, grant.lane.endpoint)
        except ValueError:
            raise GatewayLostError(
                f"the gateway offers its lane at {grant.lane.endpoint!r}, which is no address"
            ) from None
        return msgspec.structs.replace(
            grant, lane=msgspec.structs.replace(grant.lane, endpoint=endpoint)
        )

    def open_note(self, grant: Grant) -> NoteWriter | None:
        return self._notes.begin(grant.nonce, grant.incarnation)

    def make_link(self, control: "zmq.Socket[bytes]", lane_fd: int, grant: Grant) -> ZmqControlLink:
        self._stop_watching()  # nobody would take the events from now on
        return WatchedLink(control, lane_fd, grant.worker_timeout_s)

    def ended(self) -> None:
        self._notes.end()

    def close(self) -> None:
        """Give back what it holds, before the control socket is closed."""
        self._stop_watching()
        self._lock.release()

    def _stop_watching(self) -> None:
        if self._monitor is not None and self._control is not None:
            self._control.monitor(None, 0)
            self._monitor.close(linger=0)
            self._monitor = None

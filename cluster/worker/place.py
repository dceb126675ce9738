"""Where a worker works: how its gateway is reached, and where it notes what it has in hand.

This is the gateway's own machine; `remote_place` has the others. A run works the same on both.
"""

import logging
import time
from typing import Protocol

import zmq

from cluster.shared.config import Config
from cluster.shared.endpoints import FIND_INTERVAL_S, Endpoint, choose_endpoints
from cluster.shared.messages import Grant
from cluster.shared.note import NoteWriter, open_note
from cluster.shared.run_directory import RunDirectory, RunDirectoryError
from cluster.shared.takeover import PastCall
from cluster.worker.control_link import ZmqControlLink
from cluster.worker.gateway_contact import GatewayLostError
from cluster.worker.spare import QUIET_WAIT_S
from cluster.worker.watched_link import WatchedLink

__all__ = ["KeyRefusedError", "LocalPlace", "Place", "wait_for_config"]

logger = logging.getLogger("cluster.worker")

CONFIG_WAIT_S = 10.0
"""Time that the node's configuration may take to appear in the run directory."""


class KeyRefusedError(Exception):
    """The gateway does not know this worker's key; the message is one line with the remedy."""


class Place(Protocol):
    """What differs from machine to machine. For the main thread, in the order of these methods."""

    where: str
    """Where the gateway is waited for, for the log."""

    timeout_s: float
    """How long the gateway may be silent before there is a grant."""

    def find_gateway(self) -> Endpoint:
        """Return where the gateway is, which need not be there yet; raises GatewayLostError."""
        ...

    def watch(self, control: "zmq.Socket[bytes]") -> None:
        """Look at `control`, which is about to be connected."""

    def past_calls(self) -> list[PastCall]:
        """Return what earlier lives had in hand, as far as the gateway has to be told."""
        ...

    def check(self) -> None:
        """Raise KeyRefusedError if the answer of the gateway is not worth being waited for."""

    @property
    def hint(self) -> str:
        """What may be wrong if the gateway does not answer, to be added to that; or nothing."""
        ...

    def granted(self, grant: Grant) -> Grant:
        """Return `grant` with the lane's address as it is to be reached from here."""
        ...

    def open_note(self, grant: Grant) -> NoteWriter | None:
        """Return the note of the granted life; None, with a log line, if it cannot be had."""
        ...

    def make_link(self, control: "zmq.Socket[bytes]", lane_fd: int, grant: Grant) -> ZmqControlLink:
        """Return the link for the loop of the granted life."""
        ...

    def ended(self) -> None:
        """The granted life has ended in good order."""

    def close(self) -> None:
        """Give back what it holds, before `control` is closed. Idempotent."""


class LocalPlace:
    """The machine of the gateway, which it shares a run directory with."""

    hint = ""

    def __init__(
        self, directory: RunDirectory, config: Config, *, is_supervised: bool = False
    ) -> None:
        """Work for the gateway of `directory`; `is_supervised`: with the supervisor of that."""
        self._directory = directory
        self._is_supervised = is_supervised
        self.where = str(directory.path)
        self.timeout_s = config.workers.worker_timeout_s

    def find_gateway(self) -> Endpoint:
        endpoints = choose_endpoints(self._directory)
        deadline = time.monotonic() + self.timeout_s
        while (endpoint := endpoints.find_control()) is None:
            if time.monotonic() > deadline:
                raise GatewayLostError(f"no gateway has told for {self.timeout_s:g} s where it is")
            time.sleep(FIND_INTERVAL_S)
        return endpoint

    def watch(self, control: "zmq.Socket[bytes]") -> None:
        """Do nothing: who reads the run directory is let in."""

    def past_calls(self) -> list[PastCall]:
        """Return nothing: the gateway has read the notes itself."""
        return []

    def check(self) -> None:
        """Do nothing: its answer is all there is to know."""

    def granted(self, grant: Grant) -> Grant:
        return grant

    def open_note(self, grant: Grant) -> NoteWriter | None:
        if grant.note is None:
            return None
        try:
            return open_note(self._directory.path / grant.note)
        except OSError as error:
            logger.warning("what is in hand will not be seen: no note %s (%s)", grant.note, error)
            return None

    def make_link(self, control: "zmq.Socket[bytes]", lane_fd: int, grant: Grant) -> ZmqControlLink:
        if not self._is_supervised:
            return WatchedLink(control, lane_fd, grant.worker_timeout_s)
        return ZmqControlLink(control, lane_fd)  # the supervisor asks who hangs where, and kills it

    def ended(self) -> None:
        """Do nothing: the note is the gateway's."""

    def close(self) -> None:
        """Do nothing: it holds nothing."""


def wait_for_config(directory: RunDirectory) -> Config:
    """Return the configuration of the node in `directory`, whose gateway may be about to start.

    Raises RunDirectoryError, ConfigError.
    """
    began = time.monotonic()
    has_told = False
    while True:
        try:
            return directory.read_config()
        except RunDirectoryError:
            waited_s = time.monotonic() - began
            if waited_s > CONFIG_WAIT_S:
                raise
            if waited_s > QUIET_WAIT_S and not has_told:
                has_told = True
                logger.info(
                    "waiting for a gateway to start in %s, at most %g s",
                    directory.path,
                    CONFIG_WAIT_S,
                )
            time.sleep(0.05)

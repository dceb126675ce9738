"""The gateway, as the supervisor sees it: its process and the link to it, one life after another.

A life has one process, one link, and at most one `GatewayReady`. All three end together.
"""

import logging

import zmq

from cluster.shared.endpoints import FIND_INTERVAL_S, choose_endpoints
from cluster.shared.liveness import Liveness, beat_interval_s
from cluster.shared.messages import ControlMessage, GatewayReady, SupervisorHello
from cluster.shared.run_directory import RunDirectory
from cluster.supervisor.child import launch_gateway
from cluster.supervisor.gateway_link import GatewayLink, GatewayNotReading
from cluster.supervisor.place import Place

__all__ = ["GatewayKeeper"]

logger = logging.getLogger("cluster.supervisor")

HELLO_INTERVAL_S = 0.1
"""The first hello waits for the gateway in the socket; others are for a gateway that lost it."""

READY_WITHIN_S = 30.0
"""A gateway is ready in a fraction of a second, on a machine that is very busy in some; one that
waits for its predecessor's lock takes 3 s more."""

LOOK_AGAIN_S = 0.2
"""After this pause a gateway counts as silent. A supervisor that was itself asleep, too short for
`Liveness` to see it, finds in it what the gateway has said meanwhile."""


class GatewayKeeper(Place):
    """The gateway over all its lives. Times are seconds of any steady clock."""

    def __init__(self, run_directory: RunDirectory, silence_max_s: float) -> None:
        """Keep the gateway of the node in `run_directory`.

        A gateway that was ready and says nothing for `silence_max_s` seconds hangs.
        """
        super().__init__()
        self._run_directory = run_directory
        self._endpoints = choose_endpoints(run_directory)
        self._silence_max_s = silence_max_s
        self._heard_at = 0.0
        self._liveness: Liveness | None = None
        self._look_due: float | None = None
        self._looks_silent = False
        self.candidates_max = 0
        """Processes that a gateway, at its start, is told to let wait beside its spares."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._hello_due: float | None = None
        self.link: GatewayLink | None = None
        self.ready: GatewayReady | None = None
        """What this life told when it was ready; None before."""
        self.ready_at = 0.0
        """When it told that."""
        self.last_ready: GatewayReady | None = None
        """What the latest life that was ready told."""

    def start(self, now: float) -> None:
        """Start a process, with a link to it; raises OSError."""
        self._endpoints.forget()  # where its predecessor was
        # The socket first: what cannot be had shows before there is a process.
        try:
            link = GatewayLink(self._context)
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"no socket for its messages: {error.strerror}") from None
        try:
            child = launch_gateway(self._run_directory)
        except OSError:
            link.close()
            raise
        self.started(child, now)
        self.link = link
        self._connect(link)
        self._hello_due = self._heard_at = now
        self._look_out(now, max(READY_WITHIN_S, self._silence_max_s))

    def heard_ready(self, ready: GatewayReady, now: float) -> bool:
        """Take the news that a gateway is ready; False if it is no news of this life."""
        if ready.pid != self.pid or self.ready is not None:
            return False
        self.ready = self.last_ready = ready
        self.ready_at = now
        self._hello_due = None
        self._heard_at = now
        self._look_out(now, self._silence_max_s)
        self.became_ready(now)
        return True

    def heard(self, now: float) -> None:
        """The gateway has said something."""
        self._heard_at = now
        if self.ready is not None and self._liveness is not None:
            self._liveness.heard(now, (), is_behind=False)
            self._looks_silent = False

    def has_been_silent(self, now: float) -> bool:
        """Whether the gateway has said nothing for so long that a worker may call it lost."""
        return now - self._heard_at >= self._silence_max_s / 2

    def may_be_silent(self) -> None:
        """The gateway has said its last words, and has its own time to leave."""
        self._liveness = self._look_due = None

    def kill_if_silent(self, now: float) -> None:
        """Kill a gateway that hangs; it is found dead later."""
        if self.child is None or self._liveness is None or self._look_due is None:
            return
        if self._liveness.verdict(now) is None:
            self._looks_silent = False
            self._look_due = now + beat_interval_s(self._silence_max_s)
            return
        if not self._looks_silent:
            self._looks_silent = True
            self._look_due = now + LOOK_AGAIN_S
        if now < self._look_due:
            return
        logger.error(
            "the gateway (pid %d) has shown no sign of life for %.1f s; "
            "killed once it has logged where it hangs",
            self.child.pid,
            now - self._heard_at,
        )
        self.may_be_silent()
        self.child.kill_once_told()

    def tell(self, message: ControlMessage) -> None:
        """Send `message` to a gateway that is ready; to any other there is nothing to tell.

        A gateway that reads nothing is of no more use: it is killed, and found dead later.
        """
        if self.link is None or self.child is None or self.ready is None:
            return
        try:
            self.link.send(message)
        except GatewayNotReading:
            logger.error("the gateway (pid %d) reads no messages any more; killed", self.child.pid)
            self.child.kill()

    def say_hello(self, now: float) -> None:
        """Say hello, if it is time to, until the gateway has answered."""
        if self.link is not None and self._hello_due is not None and now >= self._hello_due:
            self._hello_due = now + HELLO_INTERVAL_S
            if self._connect(self.link):
                self.link.send(SupervisorHello(candidates_max=self.candidates_max))
            else:
                self._hello_due = now + FIND_INTERVAL_S

    def _connect(self, link: GatewayLink) -> bool:
        """Connect `link` as soon as it is known where its gateway is; False before."""
        if not link.is_connected and (endpoint := self._endpoints.find_control()) is not None:
            link.connect(endpoint)
        return link.is_connected

    def next_due(self) -> float | None:
        """Return when there is something to do for the gateway, or None."""
        dues = (self._hello_due, self.restart_due, self._look_due)
        return min((due for due in dues if due is not None), default=None)

    def close(self) -> None:
        """Give the sockets back; the process is the caller's to end."""
        if self.link is not None:
            self.link.close()
        self._context.term()

    def _forget(self) -> None:
        super()._forget()
        if self.link is not None:
            self.link.close()
        self.may_be_silent()
        self.link = self.ready = self._hello_due = None

    def _look_out(self, now: float, timeout_s: float) -> None:
        self._liveness = Liveness(timeout_s, now)
        self._look_due = now + beat_interval_s(self._silence_max_s)
        self._looks_silent = False

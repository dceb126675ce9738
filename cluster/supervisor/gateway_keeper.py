"""The gateway, as the supervisor sees it: its process and the link to it, one life after another.

A life has one process, one link, and at most one `GatewayReady`. All three end together.
"""

import logging

import zmq

from cluster.shared.messages import ControlMessage, GatewayReady, SupervisorHello
from cluster.shared.run_directory import RunDirectory
from cluster.supervisor.child import Child, launch_gateway
from cluster.supervisor.gateway_link import GatewayLink, GatewayNotReading
from cluster.supervisor.restart_policy import GiveUp, Restart, RestartPolicy

__all__ = ["GatewayKeeper"]

logger = logging.getLogger("cluster.supervisor")

HELLO_INTERVAL_S = 0.1
"""The first hello waits for the gateway in the socket; others are for a gateway that lost it."""


class GatewayKeeper:
    """The gateway over all its lives. Times are seconds of any steady clock."""

    def __init__(self, run_directory: RunDirectory, own_pid: int) -> None:
        """Keep the gateway of the node in `run_directory`; `own_pid` is the supervisor's."""
        self._run_directory = run_directory
        self._hello = SupervisorHello(pid=own_pid)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._hello_due: float | None = None
        self.policy = RestartPolicy()
        self.child: Child | None = None
        self.link: GatewayLink | None = None
        self.ready: GatewayReady | None = None
        """What this life told when it was ready; None before."""
        self.last_ready: GatewayReady | None = None
        """What the latest life that was ready told."""
        self.restart_due: float | None = None

    @property
    def pid(self) -> int | None:
        """The pid of the process, None while there is none."""
        return None if self.child is None else self.child.pid

    def start(self, now: float) -> GatewayLink:
        """Start a process and return the link to it; raises OSError."""
        self.child = launch_gateway(self._run_directory)
        self.policy.life_started()
        self.link = GatewayLink(self._context, self._run_directory.control_endpoint())
        self.restart_due = None
        self._hello_due = now
        return self.link

    def became_ready(self, ready: GatewayReady, now: float) -> bool:
        """Take the news that a gateway is ready; False if it is no news of this life."""
        if ready.pid != self.pid or self.ready is not None:
            return False
        self.ready = self.last_ready = ready
        self._hello_due = None
        self.policy.life_ready(now)
        return True

    def ended(self, now: float) -> Restart | GiveUp:
        """The process is dead and reaped; return what follows, which is noted as well."""
        self._forget_life()
        decision = self.policy.life_ended(now)
        self.restart_due = now + decision.delay_s if isinstance(decision, Restart) else None
        return decision

    def stopped(self) -> None:
        """The process has ended because it was told to; there is no successor."""
        self._forget_life()
        self.policy.life_withdrawn()

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
            self.link.send(self._hello)

    def next_due(self) -> float | None:
        """Return when there is something to do for the gateway, or None."""
        dues = [due for due in (self._hello_due, self.restart_due) if due is not None]
        return min(dues, default=None)

    def close(self) -> None:
        """Give the sockets back; the process is the caller's to end."""
        if self.link is not None:
            self.link.close()
        self._context.term()

    def _forget_life(self) -> None:
        if self.link is not None:
            self.link.close()
        self.child = self.link = self.ready = self._hello_due = None

"""The calls to one node: a look-up, a connection, and a pause that grows before the next one.

A call is made again for ever, until the calls are stopped.
"""

import ipaddress
import random
from collections.abc import Callable

from cluster.gateway.backoff import backoff_s
from cluster.gateway.links.look_up import LookUp
from cluster.gateway.links.node_session import NodeSession
from cluster.iocp import ClientService, IocpCore, NetAddress, SessionSettings
from cluster.iocp.timers import Timer
from cluster.shared.causes import Cause

__all__ = ["Calls"]


class Calls:
    """Calls one node, one call at a time. For the dispatching thread."""

    __slots__ = (
        "_called_at",
        "_core",
        "_failed",
        "_is_stopped",
        "_look_up",
        "_make_session",
        "_random",
        "_settings",
        "_timer",
        "address",
        "failures",
        "service",
        "session",
    )

    def __init__(
        self,
        address: NetAddress,
        core: IocpCore,
        settings: SessionSettings,
        rng: random.Random,
        make_session: Callable[[], NodeSession],
        failed: Callable[[str], None],
    ) -> None:
        """Call nobody yet. `failed` is told in words why a call did not even begin."""
        self.address = address
        """May be changed: the next call goes there."""
        self.failures = 0
        """Pauses since the last call that came to something; whoever knows of one sets it to 0."""
        self.service: ClientService | None = None
        """Of the present call; sessions hold theirs weakly."""
        self.session: NodeSession | None = None
        """The session of the present call: the ends of others call for nothing."""
        self._core = core
        self._settings = settings
        self._random = rng
        self._make_session = make_session
        self._failed = failed
        self._timer: Timer | None = None
        self._look_up: LookUp | None = None
        self._called_at = 0.0
        self._is_stopped = False

    @property
    def is_waiting(self) -> bool:
        """Whether the next call waits for its time."""
        return self._timer is not None

    def start(self) -> None:
        """Call now, also after a `stop`. Not while a call is on its way."""
        self._is_stopped = False
        self._timer = None
        if _is_numeric(self.address.host):
            self._connect(self.address)
            return
        self._look_up = LookUp(self.address, self._core, self._found)
        try:
            self._look_up.start()
        except RuntimeError as error:
            self._found(f"{self.address} cannot be looked up: {error}")

    def again(self) -> None:
        """Call after a pause, if that does not stand out already."""
        if self._is_stopped or self._timer is not None:
            return
        pause_s = backoff_s(self.failures, self._random)
        self.failures += 1
        self._timer = self._core.call_later(pause_s, self.start)

    def ended(self, session: NodeSession) -> bool:
        """A session has ended, or could not connect; return whether it was the present call's."""
        if self.session is not session:
            return False
        self.session = None
        return True

    def give_up_after(self, seconds: float) -> None:
        """End a call that has waited longer for an answer.

        The system would wait for minutes, and ask again ever more seldom.
        """
        service = self.service
        if (
            service is not None
            and service.connecting_count
            and self._core.now() - self._called_at > seconds
        ):
            service.close_service(Cause.TIMEOUT)

    def stop(self, cause: str) -> None:
        """Make no more calls until `start`, and end the present one. Idempotent."""
        self._is_stopped = True
        self.session = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._look_up is not None:
            self._look_up.cancel()
            self._look_up = None
        if self.service is not None:
            self.service.close_service(cause)

    def _found(self, found: list[NetAddress] | str) -> None:
        """Go on with a name that was looked up, or why it could not be."""
        self._look_up = None
        if isinstance(found, str):
            self._failed(found)
            self.again()
        else:
            # A name may have addresses that its node does not listen at: each gets its turn.
            self._connect(found[self.failures % len(found)])

    def _connect(self, address: NetAddress) -> None:
        try:
            self.service = ClientService(address, self._core, self._make_call, 1, self._settings)
        except OSError as error:  # an interface that is not there, for one
            self._failed(f"cannot connect to {address}: {error}")
            self.again()
            return
        self._called_at = self._core.now()
        if not self.service.start():
            self._failed("no socket is left to call with")
            self.again()

    def _make_call(self) -> NodeSession:
        self.session = self._make_session()
        return self.session


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True

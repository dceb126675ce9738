"""Nodes of a cluster whose sessions are plain objects: real links, tables, directories and sends.

Each host has a driver and a wall clock of its own; the way between two hosts can be blocked, and a
node may be killed and begun anew at the same address. Time passes only where a test waits.
"""

import random
from collections.abc import Callable, Iterable
from typing import Any

from cluster.gateway.counters import Counters
from cluster.gateway.links.handshake import LinkIdentity
from cluster.gateway.links.links import Links
from cluster.gateway.node_traffic import NodeTraffic
from cluster.gateway.node_users import NodeUsers
from cluster.gateway.users import UserTable
from cluster.iocp import IocpCore, NetAddress
from cluster.iocp.driver.memory import ManualClock, MemoryDriver, MemoryNetwork
from cluster.shared.records import KICK_USER, SEND_TO
from cluster.shared.user_records import (
    Bind,
    BindResult,
    Bound,
    SecondLogin,
    pack_send_to,
    read_bound,
)
from tests.gateway.links.world import SECRET, TIMEOUT_S

__all__ = ["LoginHost", "LoginSession", "LoginWorld"]

WALL_S = 1_700_000_000.0


class LoginSession:
    """A client's session, and what its worker would know of it."""

    def __init__(self, host: "LoginHost", number: int) -> None:
        self.host = host
        self.id = number
        self.user: str | None = None
        self.login_stamp = 0
        self.is_present = True
        self.cause: str | None = None
        """Why the gateway has ended it."""
        self.requests = 0
        self.unbind_request = 0
        self.answers: list[Bound] = []
        self.received: list[bytes] = []
        self.shard = self

    def append_bound(self, session: "LoginSession", answer: bytes) -> None:
        if session.is_present:
            self.answers.append(read_bound(answer))

    def accept(self) -> None:
        pass

    def send_now(self, packets: bytes) -> bool:
        if self.is_present:
            self.received.append(bytes(packets))
        return self.is_present

    def disconnect(self, cause: str) -> None:
        assert self.is_present
        self.is_present = False
        self.cause = cause

    # -- what its worker and its client do ---------------------------------------------------------

    def bind(self, user: str, policy: SecondLogin = SecondLogin.REPLACE) -> None:
        """Ask to be `user`."""
        self.requests += 1
        assert self.host.users.logins.look_around()
        self.host.users.logins.asker.bind(self, Bind(policy, self.requests, user))  # type: ignore[arg-type]

    def unbind(self) -> None:
        """Be nobody."""
        self.requests += 1
        self.unbind_request = self.requests
        self.host.users.logins.asker.unbind(self)  # type: ignore[arg-type]

    def close(self) -> None:
        """Let the connection be gone."""
        self.is_present = False
        del self.host.sessions[self.id]
        self.host.table.forget(self)

    @property
    def results(self) -> list[tuple[BindResult, str | None]]:
        """What the answers said."""
        return [(answer.result, answer.user) for answer in self.answers]

    def __repr__(self) -> str:
        return f"<session {self.id:#x} of {self.host.node}: {self.user} {self.login_stamp}>"


class LoginHost:
    """A machine with one node."""

    def __init__(self, world: "LoginWorld", node: int) -> None:
        self.world = world
        self.node = node
        self.life = 0
        self.wall_ahead_s = 0.0
        self.drivers: list[MemoryDriver] = []
        self.is_alive = False
        self.begin()

    def begin(self) -> None:
        """Begin another life."""
        world = self.world
        self.life += 1
        self.is_alive = True
        self._session_count = 0
        self.driver = MemoryDriver(world.network)
        self.drivers.append(self.driver)
        world.block_again()
        self.core = IocpCore(driver=self.driver)
        self.counters = Counters()
        self.sessions: dict[int, LoginSession] = {}
        self.table: UserTable[Any] = UserTable()
        sessions: Any = self.sessions
        self.traffic = NodeTraffic(self.node, self.counters)
        self.users = NodeUsers(
            self.traffic, self.core, sessions, self.table, self.counters, TIMEOUT_S, self.wall_time
        )
        self.links = self.traffic.links = Links(
            LinkIdentity(self.node, 1000 * self.node + self.life, "game", SECRET),
            world.addresses[self.node],
            world.addresses.items(),
            self.core,
            self.counters,
            self.traffic,
            timeout_s=TIMEOUT_S,
            retained_bytes_max=world.retained_bytes_max,
            rng=random.Random(world.seed + self.node + 100 * self.life),
        )
        self.traffic.change_members(world.addresses)
        self.links.start()

    def wall_time(self) -> float:
        return WALL_S + self.world.clock.now() + self.wall_ahead_s

    def kill(self) -> None:
        """End as a process does that is killed, its sessions with it."""
        self.is_alive = False
        for session in self.sessions.values():
            session.is_present = False
        self.sessions.clear()
        self.core.close()

    def open(self) -> LoginSession:
        """Return a session that has just connected."""
        self._session_count += 1
        number = self.node << 48 | self.life << 32 | self._session_count
        self.sessions[number] = session = LoginSession(self, number)
        return session

    def send_to(self, user: str, packets: bytes) -> None:
        """Send to a user, as a worker does."""
        self.users.sends.send(SEND_TO, pack_send_to(user.encode(), packets))

    def kick(self, user: str, packets: bytes) -> None:
        """Kick a user, as a worker does."""
        self.users.sends.send(KICK_USER, pack_send_to(user.encode(), packets))

    def lose_lease(self) -> None:
        """Hear no more of the store that has the members; the last list stays."""
        members = self.traffic.members
        self.traffic.change_members((), members.nodes + members.others, members.user_owners)

    def forget_node(self, other: int) -> None:
        """Hear that a node has left the cluster."""
        self.traffic.change_members(set(self.traffic.members.nodes) - {other})
        self.links.remove_node(other)

    def add_node(self, other: int) -> None:
        """Hear that a node has joined the cluster."""
        self.traffic.change_members({*self.traffic.members.nodes, other})
        self.links.add_node(other, self.world.addresses[other])

    def cut(self, other: int) -> None:
        """Break the connection with `other`, if there is one."""
        session = self.links._links[other].session
        if session is not None and session.is_connected:
            session.abort()

    def holds(self, user: str) -> LoginSession | None:
        """Return the session of this node that is `user`."""
        session: LoginSession | None = self.table.find(user)
        return session

    def held(self) -> list[LoginSession]:
        """Return the sessions of this node that are users."""
        return [session for session in self.sessions.values() if session.user is not None]

    def count(self, name: str) -> int:
        return self.counters.snapshot().get(name, 0)

    def check(self) -> None:
        self.table.check_invariants()
        self.users.logins.check_invariants()
        self.users.sends.check_invariants()


class LoginWorld:
    """The network and its hosts."""

    def __init__(
        self, nodes: Iterable[int] = (1, 2, 3), *, seed: int = 1, retained_bytes_max: int = 1 << 20
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.retained_bytes_max = retained_bytes_max
        self.clock = ManualClock()
        self.network = MemoryNetwork(seed=seed, clock=self.clock)
        self.addresses = {node: NetAddress("127.0.0.1", 7800 + node) for node in nodes}
        self.hosts: dict[int, LoginHost] = {}
        self._blocked: set[tuple[int, int]] = set()
        for node in self.addresses:
            self.hosts[node] = LoginHost(self, node)

    def __getitem__(self, node: int) -> LoginHost:
        return self.hosts[node]

    def living(self) -> list[LoginHost]:
        """Return the hosts whose node lives."""
        return [host for host in self.hosts.values() if host.is_alive]

    def user_of(self, node: int, number: int = 0) -> str:
        """Return the `number`th user whose key `node` owns."""
        logins = self.hosts[min(self.hosts)].users.logins
        assert logins.look_around()
        names = (f"user {index}" for index in range(1_000))
        return [name for name in names if logins.owner(name) == node][number]

    # -- time --------------------------------------------------------------------------------------

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        end = self.clock.now() + seconds
        while self.clock.now() < end:
            self._turn(end)

    def run(self, until: Callable[[], Any], what: str, within_s: float = 30.0) -> None:
        """Let time pass until `until` holds; AssertionError names `what`."""
        end = self.clock.now() + within_s
        while not until():
            assert self.clock.now() < end, f"{what}: not within {within_s} s"
            self._turn(end)

    def settle(self) -> None:
        """Let all happen that takes no time."""
        self.run_for(0.01)

    def run_linked(self) -> None:
        """Let time pass until every link stands and every owner knows its users."""
        self.run(
            lambda: all(
                status.state == "linked" for host in self.living() for status in host.links.status()
            ),
            "all links",
        )
        self.run(
            lambda: all(host.users.logins.owned.directory.is_complete for host in self.living()),
            "all directories",
        )
        self.settle()

    def _turn(self, end: float) -> None:
        running = self.living()
        self.rng.shuffle(running)
        for host in running:
            if host.core.dispatch(0):
                host.check()
            host.links.flush()
        if not any(host.driver.has_ready() for host in running):
            times = [host.core.next_due() for host in running]
            times += [host.driver.next_late() for host in running]
            self.clock.advance_to(min([end, *(time for time in times if time is not None)]))

    # -- failures ----------------------------------------------------------------------------------

    def part(self, node: int) -> None:
        """Let nothing get from a node to any other, nor back."""
        for other in self.addresses:
            if other != node:
                self._blocked |= {(node, other), (other, node)}
        self.block_again()

    def block_again(self) -> None:
        """Have what is blocked hold for new lives, too."""
        for source, target in self._blocked:
            for one in self._drivers(source):
                for other in self._drivers(target):
                    self.network.block(one, other)

    def heal(self) -> None:
        """Unblock every way, and begin anew what is dead."""
        for source, target in sorted(self._blocked):
            for one in self._drivers(source):
                for other in self._drivers(target):
                    self.network.unblock(one, other)
        self._blocked.clear()
        for host in self.hosts.values():
            if not host.is_alive:
                host.begin()

    def _drivers(self, node: int) -> list[MemoryDriver]:
        return self.hosts[node].drivers if node in self.hosts else []

    def close(self) -> None:
        """End it."""
        for host in self.living():
            host.links.close()
            host.core.close()

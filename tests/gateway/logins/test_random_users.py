"""Logins on several nodes while links and nodes fail at random, against what sessions can know.

Links are cut and parted for any time, nodes die and begin anew, logs are small, clocks differ.
While that goes on: whoever is there and has asked is answered, packets for a user keep the order of
each sender, and nobody is taken for somebody that it did not ask to be. When all is whole again:
each user is at most one session, the later one of those that held it, and every owner knows.
Everything that happens follows from the seed in the test's name.
"""

from collections import Counter

import pytest

from cluster.shared.user_records import BindResult, SecondLogin
from tests.gateway.links.world import TIMEOUT_S
from tests.gateway.logins.world import LoginHost, LoginSession, LoginWorld

USERS = [f"user {number}" for number in range(8)]
KICKED = b"kicked"
STEPS = 300
SESSIONS_MAX = 6
ANSWERED_WITHIN_S = 2.5 * TIMEOUT_S
"""Twice the time of a link, and what it takes to look."""


class RandomUsers:
    """The clients and the failures of one run."""

    def __init__(self, world: LoginWorld, policies: list[SecondLogin]) -> None:
        self.world = world
        self.rng = world.rng
        self.policies = policies
        self.asked: dict[LoginSession, tuple[float, int]] = {}
        """Sessions that wait, since when, and for which request."""
        self.wanted: dict[LoginSession, set[str]] = {}
        self.sent: Counter[tuple[int, int, str]] = Counter()
        self.sessions: list[LoginSession] = []
        self.seen: Counter[str] = Counter()
        """What has happened at all."""

    # -- what happens ------------------------------------------------------------------------------

    def step(self) -> None:
        rng = self.rng
        host = rng.choice(self.world.living())
        action = rng.choices(
            [self.bind, self.send, self.unbind, self.close, self.kick, self.fail],
            [8, 8, 2, 2, 1, 2],
        )[0]
        action(host)
        self.world.run_for(rng.choice([0.0, 0.000_1, 0.01, 0.1, 0.3]))
        self.look()

    def _session(self, host: LoginHost) -> LoginSession:
        present = [session for session in host.sessions.values() if session.is_present]
        if len(present) < 2 or (len(present) < SESSIONS_MAX and self.rng.random() < 0.3):
            session = host.open()
            self.sessions.append(session)
            self.wanted[session] = set()
            return session
        return self.rng.choice(present)

    def bind(self, host: LoginHost) -> None:
        session = self._session(host)
        user = self.rng.choice(USERS)
        self.wanted[session].add(user)
        session.bind(user, self.rng.choice(self.policies))
        since, _ = self.asked.get(session, (self.world.clock.now(), 0))
        self.asked[session] = since, session.requests

    def unbind(self, host: LoginHost) -> None:
        session = self._session(host)
        session.unbind()
        assert session.user is None
        self.asked.pop(session, None)

    def close(self, host: LoginHost) -> None:
        self._session(host).close()

    def send(self, host: LoginHost) -> None:
        user = self.rng.choice(USERS)
        for _ in range(self.rng.choice([1, 1, 5])):
            key = host.node, host.life, user
            self.sent[key] += 1
            number = self.sent[key]
            host.send_to(user, f"{host.node}.{host.life}/{user}/{number}".encode())

    def kick(self, host: LoginHost) -> None:
        host.kick(self.rng.choice(USERS), KICKED)

    def fail(self, host: LoginHost) -> None:
        rng, world = self.rng, self.world
        other = rng.choice([each for each in world.hosts if each != host.node])
        chance = rng.random()
        if chance < 0.35:
            host.cut(other)
            self.seen["cut"] += 1
        elif chance < 0.5:
            world.part(host.node)
        elif chance < 0.7:
            world.heal()
        elif chance < 0.9 and len(world.living()) > 2:
            host.kill()
        else:
            host.wall_ahead_s = rng.choice([-60.0, 0.0, 60.0])
            host.links._links[other].log.retained_bytes_max = rng.choice([500, 1 << 20, 1 << 20])

    # -- what must hold all the time ---------------------------------------------------------------

    def look(self) -> None:
        """Look at what sessions were told."""
        now = self.world.clock.now()
        for session in list(self.asked):
            since, request = self.asked[session]
            answered = session.answers[-1].request if session.answers else 0
            if not session.is_present or answered >= request:
                del self.asked[session]
            elif answered > 0 and self.world[session.host.node].life == session.host.life:
                # One that waited behind another is asked for when that one is answered.
                assert now - since < 2 * ANSWERED_WITHIN_S, session
            else:
                assert now - since < ANSWERED_WITHIN_S, session
        for session in self.sessions:
            assert session.user is None or session.user in self.wanted[session]
            for answer in session.answers:
                self.seen[answer.result] += 1
            self.check_order(session)
        for session in [each for each in self.sessions if not each.is_present]:
            self.seen[str(session.cause)] += 1
            self.sessions.remove(session)
            if session.id in session.host.sessions:
                session.close()  # its client has gone

    def check_order(self, session: LoginSession) -> None:
        last: dict[tuple[str, str], int] = {}
        for data in session.received:
            if data != KICKED:
                sender, user, number = data.decode().split("/")
                assert user in self.wanted[session]
                assert last.get((sender, user), 0) < int(number), session.received
                last[sender, user] = int(number)
                self.seen["received"] += 1
        session.received.clear()

    # -- what must hold in the end -----------------------------------------------------------------

    def check_end(self) -> None:
        world = self.world
        world.run_for(2 * ANSWERED_WITHIN_S)
        self.look()
        assert not self.asked
        claims: dict[str, list[LoginSession]] = {user: [] for user in USERS}
        for host in world.living():
            for session in host.held():
                assert session.is_present
                claims[str(session.user)].append(session)
        self.seen["parted"] += sum(len(sessions) > 1 for sessions in claims.values())
        world.heal()
        for host in world.living():
            for link in host.links._links.values():
                link.log.retained_bytes_max = 1 << 20
        world.run_linked()
        world.run_for(3 * TIMEOUT_S)
        self.look()
        world.settle()
        entries = 0
        for user in USERS:
            held = [host.table.find(user) for host in world.living()]
            held = [session for session in held if session is not None]
            later = max(
                claims[user],
                key=lambda session: (session.login_stamp, session.host.node, session.id),
                default=None,
            )
            # A kick that waited for the heal may have come behind it.
            assert held == ([later] if later is not None and later.is_present else [])
            assert all(not s.is_present for s in claims[user] if s is not later)
            owner = world.living()[0].users.logins.owner(user)
            login = world[owner].users.logins.owned.directory.find(user)
            assert (login is not None) == bool(held)
            if login is not None:
                assert login[1:] == (held[0].host.node, held[0].id)
        for host in world.living():
            logins = host.users.logins
            entries += len(logins.owned.directory)
            assert not logins.asker.is_waiting
            assert not logins.owned.directory.has_contests
            assert logins._tellings.nodes == set()
            assert host.users.sends._waiting_bytes == 0
            assert not host.traffic.untold_count
        assert entries == sum(len(host.table) for host in world.living())
        self.check_reach()

    def check_reach(self) -> None:
        """Every user is reached from every node."""
        world = self.world
        for host in world.living():
            for user in USERS:
                host.send_to(user, b"?")
        world.run_for(0.1)
        for host in world.living():
            for session in host.held():
                assert len(session.received) == len(world.living())


@pytest.mark.parametrize("policies", ["replace", "reject", "both"])
@pytest.mark.parametrize("seed", range(4))
def test_in_the_end_each_user_is_its_latest_login(seed: int, policies: str):
    replace, reject = SecondLogin
    chosen = {"replace": [replace], "reject": [reject], "both": [replace, reject]}[policies]
    world = LoginWorld(seed=seed)
    try:
        world.run_linked()
        run = RandomUsers(world, chosen)
        for number in range(STEPS):
            run.step()
            if number == STEPS // 3:
                world.part(1)
            elif number == STEPS // 2:
                world.heal()
                world[2].kill()
        run.check_end()
        assert run.seen[BindResult.BOUND] > 0
        assert run.seen["received"] > 0
        assert run.seen["cut"] > 0
        assert run.seen["replaced"] + run.seen[BindResult.REJECTED] > 0
    finally:
        world.close()

"""Logins at random while workers die at random: nobody is ever taken for somebody else.

Clients of two shards bind and unbind a few users, come and go; the shards' workers are killed at
any moment, with the worker's own dispatcher and outbox. Each handler call finds the same
`session.user` in every life in which it runs; when all has settled, workers and gateway agree on
who everybody is. Everything that happens follows from the seed in the test's name.
"""

import random
from typing import Any

import pytest

from cluster.iocp.packet_framing import make_packet
from cluster.shared.lane import Commit
from cluster.shared.local_lane import LocalWorkerLane
from cluster.shared.messages import Grant
from cluster.worker import App, BindResult, Session
from cluster.worker.outbox import Outbox
from tests.gateway.world import GatewayWorld, make_faulty_world
from tests.iocp.peers import Peer
from tests.worker.dispatchers import make_dispatcher

BIND, UNBIND, LOOK, FAIL, LEAVE = range(1, 6)
USERS = ("ann", "bob", "eve")
STEPS = 1_500
CLIENTS_MAX = 6


class DeadError(BaseException):
    """The worker was killed here: no handler's error."""


class WrongError(BaseException):
    """A handler call was not as it must be: this is not the application's error either."""


class Oracle:
    """What was seen in which handler call, by any life."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, Any], str | None] = {}
        self.repeated = 0
        self.answers: dict[BindResult, int] = dict.fromkeys(BindResult, 0)
        self.replaced = 0

    def check(self, session: Session, call: Any) -> None:
        """One call: the same user in each life, and only once unless it is redelivered."""
        key = session.id, call
        if key in self.seen:
            self.repeated += 1
            if not session.redelivered or self.seen[key] != session.user:
                raise WrongError(key, session.redelivered, self.seen[key], session.user)
        self.seen[key] = session.user


class MortalWorker:
    """A worker that publishes or dies wherever chance wants it to."""

    def __init__(
        self, rng: random.Random, app: App, grant: Grant, lane: LocalWorkerLane, oracle: Oracle
    ) -> None:
        self._rng = rng
        self._lane = lane
        self._oracle = oracle
        self._outbox = Outbox(1 << 20)
        app.on_any(self._packet)
        app.on_bound(self._bound)
        app.on_disconnected(self._disconnected)
        self._published = Commit(grant.position, grant.index)
        self.dispatcher = make_dispatcher(
            app,
            self._outbox,
            self._published,
            self._between_packets,
            redelivered_through=grant.redelivered_through,
        )
        for session in grant.sessions:
            self.dispatcher.resume(session)

    def _maybe_die(self, chance: float) -> None:
        if self._rng.random() < chance:
            raise DeadError

    def _packet(self, session: Session, packet_id: int, payload: bytes) -> None:
        self._oracle.check(session, session.sequence)
        self._maybe_die(0.01)
        if packet_id == BIND:
            session.bind(payload.decode())
        elif packet_id == UNBIND:
            session.unbind()
            assert session.user is None
        elif packet_id == FAIL:
            session.unbind()
            session.bind("somebody else")
            raise ValueError("this handler fails")
        elif packet_id == LEAVE:
            session.disconnect("left")
        self._maybe_die(0.01)

    def _bound(self, session: Session, result: BindResult) -> None:
        self._oracle.check(session, ("answer", self.dispatcher.commit.position))
        self._oracle.answers[result] += 1
        if result is BindResult.BOUND and session.user is None:
            raise WrongError(session.id, "was told that it is bound, and is nobody")
        self._maybe_die(0.02)

    def _disconnected(self, session: Session, cause: str) -> None:
        self._oracle.check(session, "end")
        self._oracle.replaced += cause == "replaced"
        self._maybe_die(0.02)

    def _between_packets(self) -> None:
        self._maybe_die(0.01)
        if self._rng.random() < 0.3:
            self.publish()

    def publish(self) -> None:
        commit = self.dispatcher.commit
        if commit == self._published and not self._outbox.entries:
            return
        if self._lane.publish(commit, self._outbox.records()):
            self._published = commit
            self._outbox.clear()

    def work(self) -> None:
        """Handle one chunk, if one has come; raises DeadError."""
        chunk = self._lane.receive()
        if chunk is not None:
            self.dispatcher.run(chunk)
        if chunk is None or self._rng.random() < 0.3:
            self.publish()


class Logins:
    """Two shards, their workers, and the clients that come and go."""

    def __init__(self, rng: random.Random, world: GatewayWorld, policy: Any) -> None:
        self._rng = rng
        self._policy = policy
        self.world = world
        self.oracle = Oracle()
        self.peers: list[Peer] = []
        self.deaths = 0
        self.workers = [self._start(shard) for shard in range(2)]

    def _start(self, shard: int) -> MortalWorker:
        scripted = self.world.start_worker(shard)
        app = App(second_login=self._policy)
        return MortalWorker(self._rng, app, scripted.grant, scripted.lane, self.oracle)

    def _act(self) -> None:
        """One client does something."""
        rng = self._rng
        self.peers = [peer for peer in self.peers if not self._has_gone(peer)]
        if len(self.peers) < 2 or (len(self.peers) < CLIENTS_MAX and rng.random() < 0.1):
            self.peers.append(self.world.connect())
        peer = rng.choice(self.peers)
        chance = rng.random()
        if chance < 0.02:
            self.peers.remove(peer)
            peer.reset()
            return
        kinds = [BIND, BIND, BIND, UNBIND, LOOK, LOOK, LOOK]
        if chance > 0.97:
            kinds = [FAIL, LEAVE]
        packets = [
            make_packet(rng.choice(kinds), rng.choice(USERS).encode())
            for _ in range(rng.choice([1, 1, 1, 5]))
        ]
        peer.send(b"".join(packets))

    def _has_gone(self, peer: Peer) -> bool:
        if peer.ended is not None:
            peer.close()
        return peer.is_closed or peer.ended is not None

    def step(self, *, act: bool = True) -> None:
        if act and self._rng.random() < 0.5:
            self._act()
        for shard in range(2):
            try:
                self.workers[shard].work()
            except DeadError:
                self.deaths += 1
                self.world.runner.drain(self.world.shards[shard])
                self.world.kill(shard)
                self.workers[shard] = self._start(shard)
        if self._rng.random() < 0.7:
            self.world.runner.receive()
        self.world.turn(0.001)

    def settle(self) -> None:
        """Let all that was sent be done, and all that is ending end."""
        quiet = steps = 0
        while quiet < 30:
            steps += 1
            assert steps < 20_000
            for peer in self.peers:
                self._has_gone(peer)
            self.step(act=False)
            is_idle = all(shard.is_idle for shard in self.world.shards)
            all_present = all(each.is_present for each in self.world.table.sessions.values())
            quiet = quiet + 1 if is_idle and all_present else 0

    def check(self) -> None:
        """Workers and gateway agree on who everybody is."""
        known: dict[int, str | None] = {}
        for worker in self.workers:
            for session in worker.dispatcher.sessions.values():
                known[session.id] = session.user
                assert session._binds is None or not session._binds._bindings
        assert known == {each.id: each.user for each in self.world.table.sessions.values()}


@pytest.mark.parametrize("policy", ["replace", "reject"])
@pytest.mark.parametrize("seed", range(6))
def test_nobody_is_ever_taken_for_somebody_else(seed: int, policy: str) -> None:
    rng = random.Random(seed)
    world = make_faulty_world(seed, shard_count=2)
    try:
        logins = Logins(rng, world, policy)
        for _ in range(STEPS):
            logins.step()
        logins.settle()
        logins.check()
        assert logins.deaths > 0
        assert logins.oracle.repeated > 0
        assert logins.oracle.answers[BindResult.BOUND] > 0
        if policy == "replace":
            assert logins.oracle.replaced > 0
        else:
            assert logins.oracle.answers[BindResult.REJECTED] > 0
        assert world.violations == []
    finally:
        world.close()

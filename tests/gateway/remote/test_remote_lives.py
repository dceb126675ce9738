"""Shards that are served from other machines: who gets them, and when a life there is over."""

from pathlib import Path

import pytest

from cluster.gateway.remote.remote_control import RemotePeer
from cluster.gateway.remote.remote_shards import RemoteShards, remote_worker_status
from cluster.shared.lane import Commit
from cluster.shared.messages import Grant, Hello, Refuse, Stop
from cluster.shared.node_status import RemoteWorker, WorkerStatus
from cluster.shared.takeover import PastCall, Suspect
from tests.gateway.test_quarantine import Ward
from tests.gateway.test_workers import LIFE, LIVING_PID, LIVING_SINCE, TIMEOUT_S

BERLIN = RemotePeer("berlin", "10.0.0.2")
NONCE = LIFE.nonce


class Site(Ward):
    """A ward whose shard 0 is for workers on other machines."""

    def __init__(self, path: Path) -> None:
        remote = RemoteShards(frozenset({0}), "tcp://0.0.0.0:7901")
        super().__init__(path, max_redeliveries=2, remote=remote)

    def ask(self, name: bytes, shard: int = 0, past: list[PastCall] | None = None) -> object:
        """Have a worker of another machine ask for a shard; return what it is answered."""
        hello = Hello(shard=shard, pid=LIVING_PID, create_time=LIVING_SINCE, past=past or [])
        self.workers.hello(name, hello, BERLIN)
        identity, message = self.sent[-1]
        assert identity == name
        return message

    def live_there(self, name: bytes, past: list[PastCall] | None = None) -> Grant:
        """Have a life on another machine whose end of the lane is open."""
        grant = self.ask(name, past=past)
        assert isinstance(grant, Grant), grant
        self.lane = self.lanes[0].open_worker()
        self.publish(self.lane)
        self.lanes[0].flush()
        return grant

    def lose(self, name: bytes) -> None:
        """End the connection of a worker."""
        self.unreachable.add(name)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path / "run")
    made.append_opened()
    made.append_packets(b"one", b"two")
    return made


# -- who gets them ---------------------------------------------------------------------------------


def test_a_grant_for_another_machine_names_its_lane_and_no_note(site: Site):
    grant = site.live_there(b"one")
    assert grant.lane.endpoint == "tcp://0.0.0.0:7901"
    assert grant.note is None
    assert site.count("notes_missing") == 0
    local = site.hello(b"here", shard=1)
    assert local.lane.endpoint == "ipc://lanes"
    assert local.note is not None
    assert not grant.lane.identity.startswith(local.lane.identity.rpartition(b".")[0])
    assert len(grant.lane.identity) > len(local.lane.identity) + 16  # it cannot be guessed


def test_each_shard_is_for_one_kind_of_worker(site: Site):
    assert site.hello(b"here", shard=0).reason.startswith("shard 0 is for a worker on another")
    refused = site.ask(b"there", shard=1)
    assert isinstance(refused, Refuse)
    assert refused.reason.startswith("shard 1 is served on the gateway's machine")
    assert "others are 0" in refused.reason
    assert "does not exist" in site.ask(b"there", shard=2).reason  # type: ignore[attr-defined]


def test_the_supervisor_hears_nothing_of_workers_elsewhere(site: Site):
    site.live_there(b"one")
    site.workers.tell(0)
    site.beat_for(TIMEOUT_S)
    assert site.count("workers_fenced") == 1
    site.live_there(b"two")
    site.lose(b"two")
    site.workers.beat()
    assert site.workers.life(0) is None
    assert site.reports == []


# -- when a life is over ---------------------------------------------------------------------------


def test_a_living_process_here_with_the_same_pid_says_nothing_of_one_elsewhere(site: Site):
    site.live_there(b"one")
    site.lose(b"one")
    # Process and creation time of this very process, which lives.
    assert isinstance(site.ask(b"two"), Grant)
    assert site.drained == 1  # what the first one had published counts


def test_a_worker_whose_connection_stands_keeps_its_shard_until_it_is_silent(site: Site):
    site.live_there(b"one")
    refused = site.ask(b"two")
    assert isinstance(refused, Refuse)
    assert refused.is_temporary
    assert f"process {LIVING_PID} of berlin at 10.0.0.2, whose connection stands" in refused.reason
    site.beat_for(TIMEOUT_S - 1)
    site.workers.heartbeat(b"one", site.beat_of(0))
    site.beat_for(TIMEOUT_S - 1)
    assert site.workers.life(0) is not None
    site.time += 1
    site.workers.beat()
    assert site.workers.life(0) is None
    assert site.count("workers_fenced") == 1
    assert isinstance(site.ask(b"two"), Grant)
    site.workers.heartbeat(b"one", site.beat_of(0))
    assert site.sent[-1] == (b"one", Refuse(reason="this incarnation has no shard any more"))


def test_the_end_of_a_connection_is_noticed_at_the_next_sign_of_life(site: Site):
    site.live_there(b"one")
    site.workers.beat()
    assert site.workers.life(0) is not None
    site.lose(b"one")
    site.workers.beat()
    assert site.workers.life(0) is None
    assert site.count("workers_fenced") == 0


def test_an_heir_elsewhere_whose_connection_has_ended_is_in_nobodys_way(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    site.live_there(b"one")
    site.lose(b"one")
    monkeypatch.setattr("cluster.gateway.workers.SESSIONS_PER_TURN", 1)
    site.shards[0].succession.opened(site.session)  # type: ignore[arg-type]
    hello = Hello(shard=0, pid=LIVING_PID, create_time=LIVING_SINCE)
    site.workers.hello(b"two", hello, BERLIN)
    refused = site.ask(b"three")
    assert isinstance(refused, Refuse)
    assert refused.is_temporary
    site.lose(b"two")
    site.workers.hello(b"four", hello, BERLIN)
    for _ in range(3):
        site.turn()
    assert isinstance(site.sent[-1][1], Grant)
    assert site.sent[-1][0] == b"four"
    assert site.count("workers_fenced") == 0


def test_a_drain_tells_workers_elsewhere_to_stop(site: Site):
    site.live_there(b"one")
    assert site.workers.stop_all()
    assert isinstance(site.sent[-1][1], Stop)


# -- what kills them -------------------------------------------------------------------------------


def test_the_next_life_on_that_machine_tells_what_the_last_one_died_of(site: Site):
    deaths: list[PastCall] = []
    grants = []
    for number in range(3):
        name = b"life %d" % number
        grant = site.live_there(name, deaths[-1:])
        grants.append(grant.suspects)
        deaths.append(past(grant.incarnation, position=2, index=1))
        site.lose(name)
    assert grants == [
        [],
        [Suspect(position=2, index=1, is_set_aside=False)],
        [Suspect(position=2, index=1, is_set_aside=True)],
    ]
    (letter,) = site.letters()
    assert (letter.kind, letter.payload, letter.deaths) == ("packet", b"two", 2)
    assert site.count("dead_letters") == 1


@pytest.mark.parametrize(
    "told",
    [
        [],
        [PastCall(nonce=NONCE + 1, incarnation=1, position=2, index=1, session=0)],
        [PastCall(nonce=NONCE, incarnation=2, position=2, index=1, session=0)],
        [PastCall(nonce=NONCE, incarnation=1, position=0, index=0, session=0)],
        [PastCall(nonce=NONCE, incarnation=1, position=99, index=1, session=0)],
        [PastCall(nonce=NONCE, incarnation=1, position=-1, index=-1, session=-1)],
        [PastCall(nonce=NONCE, incarnation=1, position=2, index=-1, session=0)],
        [PastCall(nonce=NONCE, incarnation=1, position=1 << 60, index=0, session=0)],
    ],
)
def test_nothing_is_blamed_for_a_life_of_which_nothing_is_told(site: Site, told: list[PastCall]):
    site.live_there(b"one")
    site.lose(b"one")
    assert site.live_there(b"two", told).suspects == []


def test_a_death_is_told_once(site: Site):
    grant = site.live_there(b"one")
    site.lose(b"one")
    death = [past(grant.incarnation, position=2)]
    assert len(site.live_there(b"two", death).suspects) == 1
    site.lose(b"two")
    # The note of the second life is not there, that of the first one still is.
    (suspect,) = site.live_there(b"three", death).suspects
    assert not suspect.is_set_aside
    assert site.letters() == []


def test_a_resumption_that_kills_on_another_machine_ends_its_session(site: Site):
    incarnation = site.live_there(b"life 0").incarnation
    site.publish(site.lane, commit=Commit(2, 0))  # the opening is done
    told: list[PastCall] = []
    for number in range(1, 4):
        assert site.session.causes == []
        site.lose(b"life %d" % (number - 1))
        incarnation = site.live_there(b"life %d" % number, told).incarnation
        told = [past(incarnation, session=site.session.id)]
    assert site.session.causes == ["poison"]


def past(incarnation: int, position: int = 0, index: int = 0, session: int = 0) -> PastCall:
    return PastCall(
        nonce=NONCE, incarnation=incarnation, position=position, index=index, session=session
    )


# -- status ----------------------------------------------------------------------------------------


def test_a_remote_shard_is_shown_as_one_also_while_nobody_serves_it(site: Site):
    def status(is_draining: bool = False) -> WorkerStatus:
        lives = site.workers.lives_begun(0)
        return remote_worker_status(0, "zmq", site.workers.life(0), lives, is_draining)

    nobody = RemoteWorker(key=None, address=None)
    vacant = WorkerStatus(
        shard=0, pid=None, state="starting", restarts=0, lane="zmq", remote=nobody
    )
    assert status() == vacant
    site.live_there(b"one")
    assert status() == WorkerStatus(
        shard=0,
        pid=LIVING_PID,
        state="ready",
        restarts=0,
        lane="zmq",
        remote=RemoteWorker(key="berlin", address="10.0.0.2"),
    )
    assert status(is_draining=True).state == "draining"
    site.lose(b"one")
    site.workers.beat()
    assert (status().state, status().pid, status().remote) == ("backoff", None, nobody)
    site.live_there(b"two")
    assert status().restarts == 1

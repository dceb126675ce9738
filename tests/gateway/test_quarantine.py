"""Lives end with something in hand: what is counted, told to successors, shown, and set aside."""

import errno
from pathlib import Path
from typing import Any

import pytest

from cluster.gateway.dead_letter_file import DeadLetterFile
from cluster.gateway.grants import Grants, NodeIdentity
from cluster.gateway.note_files import NoteFiles
from cluster.gateway.quarantine import Quarantine
from cluster.gateway.remote.remote_shards import RemoteShards
from cluster.gateway.shard_tells import TellOwner
from cluster.iocp.packet_framing import make_packet
from cluster.shared.dead_letters import DeadLetter, read_dead_letters
from cluster.shared.lane import Commit
from cluster.shared.messages import Grant, ShardReport
from cluster.shared.node_status import InHand
from cluster.shared.note import CALL, INDEX_BITS, SEVERAL, NoteWriter, open_note
from cluster.shared.records import BOUND, CLOSED, DEFERRED, FINISHED, MESSAGE, OPENED
from cluster.shared.run_directory import RunDirectory
from cluster.shared.shard_ids import ShardId
from cluster.shared.takeover import Suspect
from tests.gateway.test_workers import DEAD_PID, LIFE, TIMEOUT_S, Node

OTHER_KIND = 99
NOT_REMOTE = RemoteShards()


class Session:
    """What the gateway knows of a client here."""

    def __init__(self, session_id: int = 7) -> None:
        self.id = session_id
        self.address_text = "10.0.0.1:5"
        self.next_sequence = 13
        self.uncommitted_bytes = 1 << 20
        self.hears_commits = False
        self.told_send_blocked = self.send_record_in_lane = False
        self.causes: list[str] = []

    def disconnect(self, cause: str) -> None:
        self.causes.append(cause)


class Ward(Node):
    """The workers of two shards with a quarantine, in a run directory."""

    def __init__(
        self, path: Path, max_redeliveries: int = 3, remote: RemoteShards = NOT_REMOTE
    ) -> None:
        super().__init__()
        self.directory = RunDirectory(path)
        self.directory.create()
        self.quarantine = Quarantine(
            LIFE,
            2,
            max_redeliveries,
            NoteFiles(path),
            DeadLetterFile(path, self.counters),
            self.counters,
        )
        self.workers = self.workers_by(
            Grants(
                NodeIdentity(LIFE, 65_535, 1 << 20, TIMEOUT_S),
                self.shards,
                "ipc://lanes",
                self.quarantine,
                remote,
            ),
        )
        self.session = Session()
        self.lives = 0

    def live(self) -> tuple[Grant, Any, NoteWriter]:
        """Grant a life; return the grant, its end of the lane, and of the note."""
        self.lives += 1
        grant = self.hello(b"life %d" % self.lives)
        assert isinstance(grant, Grant)
        lane = self.lanes[0].open_worker()
        self.publish(lane)
        self.lanes[0].flush()
        assert grant.note is not None
        return grant, lane, open_note(self.directory.path / grant.note)

    def end(self) -> None:
        """Have the process of the life be dead."""
        life = self.workers.life(0)
        assert life is not None
        self.workers.gone(0, life.pid)

    def die(self, position: int, index: int = 0, resumed: int | None = None) -> Grant:
        """Live, and die over a call; return the grant of that life."""
        grant, _, note = self.live()
        note.begin()
        if resumed is not None:
            note.resuming(resumed)
        else:
            note.words[CALL] = (position << INDEX_BITS) + index
        self.end()
        return grant

    def append_opened(self) -> None:
        self.lanes[0].append(OPENED, self.session.id, b"10.0.0.1:5", 0, self.session)

    def append_packets(self, *payloads: bytes) -> None:
        data = b"".join(make_packet(40 + i, payload) for i, payload in enumerate(payloads))
        self.lanes[0].append_packets(self.session.id, 11, data, len(payloads), self.session)

    def letters(self) -> list[DeadLetter]:
        return [letter for _, letter in read_dead_letters(self.directory)]

    def count(self, name: str) -> int:
        return self.counters.snapshot().get(name, 0)

    def notes(self) -> list[str]:
        return [path.name for path in self.directory.path.glob("note-*")]


@pytest.fixture
def ward(tmp_path: Path) -> Ward:
    made = Ward(tmp_path / "run")
    made.append_opened()
    made.append_packets(b"one", b"two", b"")
    return made


# -- notes -----------------------------------------------------------------------------------------


def test_each_life_has_a_note_of_its_own_that_ends_with_it(ward: Ward):
    grant, _, _ = ward.live()
    assert ward.notes() == [grant.note]
    ward.end()
    assert ward.notes() == []
    successor, _, _ = ward.live()
    assert ward.notes() == [successor.note] != [grant.note]
    ward.quarantine.close()
    assert ward.notes() == []


def test_what_a_crash_has_left_is_removed_by_the_next_gateway(tmp_path: Path):
    (tmp_path / "note-0-17").write_bytes(b"")
    (tmp_path / "epoch").write_bytes(b"1")
    NoteFiles(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch"]


def test_without_room_for_a_note_a_worker_goes_on_and_that_is_told_and_counted(
    ward: Ward, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def full(path: Path) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cluster.gateway.note_files.create_note", full)
    grant = ward.hello(b"one", pid=DEAD_PID)
    assert isinstance(grant, Grant)
    assert grant.note is None
    assert ward.count("notes_missing") == 1
    assert "No space left on device" in caplog.text
    assert ward.quarantine.in_hand(ward.shards[0]) is None
    ward.end()


def test_a_note_that_cannot_be_removed_yet_is_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    files = NoteFiles(tmp_path)
    created = files.create(0, 1)
    assert created is not None

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "in use")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        files.remove(*created)
    assert (tmp_path / created[0]).exists()
    created_next = files.create(0, 2)
    assert created_next is not None
    assert [path.name for path in tmp_path.iterdir()] == [created_next[0]]
    files.remove(*created_next)


# -- what is in hand -------------------------------------------------------------------------------


def test_the_packet_in_hand_is_told_from_the_log(ward: Ward):
    _, _, note = ward.live()
    assert ward.quarantine.in_hand(ward.shards[0]) is None
    note.begin()
    note.words[CALL] = (2 << INDEX_BITS) + 1
    in_hand = ward.quarantine.in_hand(ward.shards[0])
    assert in_hand == InHand(
        session=7, packet_id=41, sequence=12, for_s=in_hand.for_s if in_hand else -1
    )
    assert 0 <= in_hand.for_s < 60
    note.words[CALL] = 1 << INDEX_BITS
    event = ward.quarantine.in_hand(ward.shards[0])
    assert event is not None
    assert (event.session, event.packet_id, event.sequence) == (7, None, None)
    note.clear()
    assert ward.quarantine.in_hand(ward.shards[0]) is None
    assert ward.quarantine.in_hand(ward.shards[1]) is None


def test_of_packets_that_are_in_hand_together_the_first_is_told(ward: Ward):
    _, _, note = ward.live()
    note.begin()
    note.words[CALL] = (2 << INDEX_BITS) + SEVERAL
    in_hand = ward.quarantine.in_hand(ward.shards[0])
    assert in_hand is not None
    assert (in_hand.packet_id, in_hand.sequence) == (40, 11)
    note.words[CALL] = (1 << INDEX_BITS) + SEVERAL
    assert ward.quarantine.in_hand(ward.shards[0]) is None, "an event is never one of several"


def test_what_the_commit_covers_is_not_in_hand(ward: Ward):
    _, lane, note = ward.live()
    note.words[CALL] = (2 << INDEX_BITS) + 1
    ward.publish(lane, commit=Commit(2, 1))
    assert ward.quarantine.in_hand(ward.shards[0]) is not None
    ward.publish(lane, commit=Commit(2, 2))
    assert ward.quarantine.in_hand(ward.shards[0]) is None
    ward.end()
    assert ward.live()[0].suspects == []


@pytest.mark.parametrize(
    ("position", "index", "resumed"),
    [(99, 0, None), (2, 3, None), (1, 1, None), (3, 0, None), (0, 0, 12345)],
)
def test_a_note_of_what_never_was_is_of_nothing(
    ward: Ward, position: int, index: int, resumed: int | None
):
    ward.lanes[0].append(OTHER_KIND, 7, b"")
    for _ in range(4):
        assert ward.die(position, index, resumed).suspects == []
    assert ward.count("dead_letters") == 0


# -- deaths ----------------------------------------------------------------------------------------


def test_a_successor_is_told_of_the_suspect_and_then_to_set_it_aside(ward: Ward):
    suspect = Suspect(position=2, index=1, is_set_aside=False)
    assert ward.die(2, 1).suspects == []
    assert ward.die(2, 1).suspects == [suspect]
    assert ward.count("dead_letters") == 0
    assert ward.die(2, 1).suspects == [suspect]
    set_aside = Suspect(position=2, index=1, is_set_aside=True)
    assert ward.live()[0].suspects == [set_aside]
    ward.end()  # before it could commit that
    grant, lane, _ = ward.live()
    assert grant.suspects == [set_aside]
    ward.publish(lane, commit=Commit(2, 2))
    ward.end()
    assert ward.live()[0].suspects == []
    assert ward.count("dead_letters") == 1


def test_a_suspect_stays_one_while_it_is_deferred(ward: Ward):
    """Its commit is no proof that it has been done."""
    ward.die(2, 1)
    _, lane, note = ward.live()
    deferred = ward.shards[0].succession.deferred
    commit = Commit(3, 0)
    deferred.defer(ward.lanes[0].log, commit, ward.session.id, DEFERRED.pack(2, 1, 1))
    deferred.commit(0.0)
    ward.publish(lane, commit=commit)
    note.begin()
    note.words[CALL] = (2 << INDEX_BITS) + 1
    ward.end()
    assert ward.die(2, 1).suspects == [Suspect(position=2, index=1, is_set_aside=False)]
    assert [letter.payload for letter in ward.letters()] == [b"two"]
    grant, lane, _ = ward.live()
    assert grant.suspects == [Suspect(position=2, index=1, is_set_aside=True)]
    deferred.done(ward.session.id, FINISHED.pack(2, 1))
    deferred.commit(0.0)
    ward.end()
    assert ward.live()[0].suspects == []


def test_a_death_over_several_packets_is_blamed_on_none_of_them(tmp_path: Path):
    ward = Ward(tmp_path / "run", max_redeliveries=1)
    ward.append_opened()
    ward.append_packets(b"one", b"two", b"")
    ward.die(2, SEVERAL)
    assert ward.letters() == []
    ward.die(2, 1)
    (letter,) = ward.letters()
    assert (letter.sequence, letter.payload) == (12, b"two")


def test_each_death_tells_what_was_in_hand(ward: Ward, caplog: pytest.LogCaptureFixture):
    ward.die(2, 1)
    told = "its worker has ended with packet 12 (id 41) of session 0x7 (10.0.0.1:5) in hand, for 0"
    assert f"shard 0: {told}" in caplog.text
    ward.live()
    ward.end()  # with nothing in hand
    assert caplog.text.count("has ended with") == 1


def test_what_is_set_aside_is_a_dead_letter(ward: Ward):
    for _ in range(3):
        ward.die(2, 1)
    (letter,) = ward.letters()
    assert letter == DeadLetter(
        time=letter.time,
        node=3,
        epoch=4,
        shard=0,
        session=7,
        address="10.0.0.1:5",
        kind="packet",
        packet_id=41,
        sequence=12,
        payload=b"two",
        deaths=3,
    )
    assert ward.session.causes == []  # a successor ends it, behind the answers to what came before


@pytest.mark.parametrize(
    ("kind", "name"), [(OPENED, "opened"), (CLOSED, "closed"), (BOUND, "bound")]
)
def test_events_are_set_aside_as_well(tmp_path: Path, kind: int, name: str):
    ward = Ward(tmp_path / "run", 1)
    ward.lanes[0].append(kind, 7, b"eof", 0, ward.session)
    ward.die(1)
    (letter,) = ward.letters()
    assert (letter.kind, letter.packet_id, letter.sequence, letter.payload) == (name, *[None] * 3)
    assert ward.live()[0].suspects == [Suspect(position=1, index=0, is_set_aside=True)]


def test_a_session_whose_resumption_is_poison_is_ended_by_the_gateway(ward: Ward):
    _, lane, _ = ward.live()
    ward.publish(lane, commit=Commit(2, 0))
    ward.end()
    for _ in range(3):
        (replayed,) = ward.die(0, resumed=7).sessions
        assert not replayed.closing
    assert ward.session.causes == ["poison"]
    grant = ward.live()[0]
    assert [session.closing for session in grant.sessions] == [True]
    assert grant.suspects == []
    assert [letter.kind for letter in ward.letters()] == ["resumed"]


def test_the_death_that_led_to_it_is_told_to_the_supervisor(ward: Ward):
    for _ in range(2):
        ward.die(2, 1)
    assert not any(report.state == "ended" for report in ward.reports)
    ward.die(2, 1)
    last = ward.reports[-1]
    assert last == ShardReport(
        shard=0,
        pid=last.pid,
        state="ended",
        committed=False,
        set_aside=True,
    )


def test_a_worker_that_hangs_counts_and_has_not_worked_since_its_last_sign(ward: Ward):
    for death in range(1, 4):
        _, _, note = ward.live()
        note.words[CALL] = 1 << INDEX_BITS
        ward.beat_for(TIMEOUT_S)
        assert ward.workers.life(0) is None
        report = ward.reports[-1]
        assert (report.state, report.silent_s) == ("stuck", TIMEOUT_S)
        assert report.set_aside == (death == 3)
    assert [letter.kind for letter in ward.letters()] == ["opened"]


def test_ends_in_good_order_count_for_nothing(ward: Ward):
    for _ in range(6):
        _, _, note = ward.live()
        note.words[CALL] = 1 << INDEX_BITS
        note.clear()
        ward.end()
    assert ward.live()[0].suspects == []


def test_a_life_that_was_replaced_is_no_death_whatever_it_had_in_hand(ward: Ward):
    ward.die(2)
    ward.die(2)  # one more, and it is set aside
    for _ in range(3):
        grant, _, note = ward.live()
        assert grant.suspects == [Suspect(position=2, index=0, is_set_aside=False)]
        note.begin()
        note.words[CALL] = 2 << INDEX_BITS
        life = ward.workers.life(0)
        assert life is not None
        ward.workers.gone(0, life.pid, was_replaced=True)
        assert ward.notes() == []
    assert ward.letters() == []
    ward.die(2)
    assert len(ward.letters()) == 1


def test_a_message_that_kills_is_set_aside_and_its_letter_says_whose_it_was(ward: Ward):
    owner = TellOwner(ShardId(2, 1), 3, 100, number=5)
    ward.lanes[0].append(MESSAGE, 0, b"a message", 0, owner)
    grants = [ward.die(3) for _ in range(3)]
    assert grants[1].suspects == [Suspect(position=3, index=0, is_set_aside=False)]
    grant = ward.live()[0]
    assert grant.suspects == [Suspect(position=3, index=0, is_set_aside=True)]
    (letter,) = ward.letters()
    assert (letter.kind, letter.session, letter.packet_id) == ("message", 0, None)
    assert letter.address == "shard 1 of node 2"
    assert letter.payload == b"a message"

"""A worker on another machine than its gateway's: its notes, and what it does for itself."""

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from cluster.iocp import NetAddress
from cluster.shared.key_files import KeyFileError, make_key_files, read_gateway_keys
from cluster.shared.messages import Grant, LaneOffer
from cluster.shared.note import CALL, INDEX_BITS
from cluster.shared.remote_endpoints import RemoteServer
from cluster.shared.run_directory import RunDirectory, RunDirectoryHeld
from cluster.shared.takeover import PAST_CALLS_MAX, PastCall
from cluster.shared.zmq_sockets import open_control_socket
from cluster.worker import App, remote_place
from cluster.worker.gateway_contact import GatewayLostError
from cluster.worker.place import KeyRefusedError
from cluster.worker.remote_place import PastNotes, RemotePlace
from cluster.worker.spare import ask_for_shard
from tests.support import wait_until

ROOT = Path(__file__).parents[2]
NONCE = 0xABC

GRANT = Grant(
    node=1,
    nonce=NONCE,
    shard=3,
    incarnation=7,
    lane=LaneOffer(
        kind="zmq",
        endpoint="tcp://0.0.0.0:7901",
        identity=b"x",
        capacity_bytes=1,
        max_batch_bytes=1,
    ),
    position=1,
    index=0,
    sessions=[],
    max_packet_bytes=1,
    worker_timeout_s=1.0,
)


def past(incarnation: int, position: int = 0, index: int = 0, session: int = 0) -> PastCall:
    return PastCall(
        nonce=NONCE, incarnation=incarnation, position=position, index=index, session=session
    )


# -- notes -----------------------------------------------------------------------------------------


def test_what_a_life_had_in_hand_is_told_by_each_that_follows_until_one_is_granted(tmp_path: Path):
    note = PastNotes(tmp_path, "shard-3").begin(NONCE, 1)
    assert note is not None
    note.begin()
    note.words[CALL] = 5 << INDEX_BITS | 2
    for _ in range(2):  # one that was refused tells it, and so does the next
        assert PastNotes(tmp_path, "shard-3").past_calls() == [past(1, 5, 2)]
    successor = PastNotes(tmp_path, "shard-3")
    resumed = successor.begin(NONCE, 2)
    assert resumed is not None
    resumed.resuming(99)
    assert PastNotes(tmp_path, "shard-3").past_calls() == [past(2, session=99)]


def test_nothing_in_hand_is_told_as_that_and_a_good_end_not_at_all(tmp_path: Path):
    notes = PastNotes(tmp_path, "shard-3")
    note = notes.begin(NONCE, 1)
    assert note is not None
    assert PastNotes(tmp_path, "shard-3").past_calls() == [past(1)]
    notes.end()
    assert PastNotes(tmp_path, "shard-3").past_calls() == []
    assert list(tmp_path.iterdir()) == []
    notes.end()


def test_each_shard_has_its_own_notes(tmp_path: Path):
    assert PastNotes(tmp_path, "shard-3").begin(NONCE, 1) is not None
    other = PastNotes(tmp_path, "shard-4")
    assert other.past_calls() == []
    assert other.begin(NONCE, 2) is not None
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_that_is_no_note_is_passed_over_and_goes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "shard-3-note-0-1").write_text("short")
    (tmp_path / "shard-3-note-mine").write_text("")
    for number in range(PAST_CALLS_MAX):
        (tmp_path / f"shard-3-note-{NONCE:016x}-{number}").write_bytes(bytes(4096))
    notes = PastNotes(tmp_path, "shard-3")
    assert notes.past_calls() == [past(number) for number in range(PAST_CALLS_MAX)]
    assert notes.begin(NONCE, 99) is not None
    assert [path.name for path in tmp_path.iterdir()] == [f"shard-3-note-{NONCE:016x}-99"]
    (tmp_path / "shard-3-note-0-1").write_text("short")
    assert notes.past_calls() == [past(99)]
    assert "shard-3-note-0-1 is no note: 5 bytes" in caplog.text


def test_without_room_for_a_note_the_worker_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    assert PastNotes(tmp_path / "gone", "shard-3").begin(NONCE, 1) is None
    assert "what is in hand will not be known" in caplog.text


# -- the place -------------------------------------------------------------------------------------


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[NetAddress]:
    """A gateway that lets nobody in: the address of its socket, of which `tmp_path` has the key."""
    make_key_files(tmp_path / "keys")
    with zmq.Context() as context:
        doorman = context.socket(zmq.ROUTER)
        doorman.bind("inproc://zeromq.zap.01")
        keys = read_gateway_keys(tmp_path / "keys")
        server = RemoteServer(keys, 1 << 20, 1.0, is_ipv6=False)
        router = open_control_socket(context, zmq.ROUTER, server)
        port = router.bind_to_random_port("tcp://127.0.0.1")

        def refuse() -> None:
            while doorman.poll(5_000):
                frames = doorman.recv_multipart()
                if frames[2] == b"stop":
                    return
                reply = [b"1.0", frames[3], b"400", b"", b"", b""]
                doorman.send_multipart([*frames[:2], *reply])

        thread = threading.Thread(target=refuse)
        thread.start()
        yield NetAddress("127.0.0.1", port)
        stopper = context.socket(zmq.REQ)
        stopper.connect("inproc://zeromq.zap.01")
        stopper.send(b"stop")
        thread.join()
        for made in (stopper, router, doorman):
            made.close(linger=0)


def place(tmp_path: Path, gateway: NetAddress) -> RemotePlace:
    return RemotePlace(gateway, tmp_path / "keys", 3, RunDirectory(tmp_path / "run"))


def test_a_key_that_is_refused_ends_the_waiting(tmp_path: Path, gateway: NetAddress):
    here = place(tmp_path, gateway)
    endpoint = here.find_gateway()
    with zmq.Context() as context:
        control = open_control_socket(context, zmq.DEALER, endpoint.curve)
        here.watch(control)
        control.connect(endpoint.address)

        def refused() -> str:
            try:
                here.check()
            except KeyRefusedError as error:
                return str(error)
            return ""

        told = wait_until(refused, what="the refusal")
        assert f"the gateway at tcp://{gateway} does not know the key" in told
        assert "remote.keys_dir" in told
        here.close()
        here.close()
        control.close(linger=0)


def test_a_key_that_is_refused_before_the_first_word_ends_the_asking(
    tmp_path: Path, gateway: NetAddress, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cluster.worker.spare.set_imports_aside", lambda: None)  # of this process
    here = place(tmp_path, gateway)
    endpoint = here.find_gateway()
    with zmq.Context() as context, open_control_socket(context, zmq.DEALER, endpoint.curve) as made:
        here.watch(made)
        made.connect(endpoint.address)

        def takes_nothing() -> bool:
            try:
                made.send(b"", zmq.NOBLOCK)
            except zmq.Again:
                return True
            return False

        wait_until(takes_nothing, what="the end of the connection")
        made.setsockopt(zmq.SNDTIMEO, 1_000)  # else a send that waits for the gateway never ends
        with pytest.raises(KeyRefusedError):
            ask_for_shard(made, 3, 10.0, "there", App(), check=here.check)
        here.close()


def test_a_gateway_of_another_key_is_hinted_at(tmp_path: Path, gateway: NetAddress):
    make_key_files(tmp_path / "keys", replace=True)
    here = place(tmp_path, gateway)
    assert here.hint == ""
    endpoint = here.find_gateway()
    with zmq.Context() as context:
        control = open_control_socket(context, zmq.DEALER, endpoint.curve)
        here.watch(control)
        control.connect(endpoint.address)

        def hint() -> str:
            here.check()
            return here.hint

        told = wait_until(hint, what="a handshake that fails")
        assert f"is {tmp_path / 'keys' / 'gateway.key'} the gateway's key" in told
        here.close()
        control.close(linger=0)


def test_a_shard_has_one_worker_on_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote_place, "LOCK_WAIT_S", 0.0)
    make_key_files(tmp_path / "keys")
    address = NetAddress("127.0.0.1", 7900)
    first = place(tmp_path, address)
    with pytest.raises(RunDirectoryHeld):
        place(tmp_path, address)
    place(tmp_path, NetAddress("127.0.0.1", 7902)).close()  # of another gateway
    first.close()
    place(tmp_path, address).close()


def test_a_lane_is_reached_by_the_gateways_address(tmp_path: Path):
    make_key_files(tmp_path / "keys")
    here = place(tmp_path, NetAddress("127.0.0.1", 7900))
    assert here.granted(GRANT).lane.endpoint == "tcp://127.0.0.1:7901"
    offer = LaneOffer(
        kind="shm", endpoint="/run/lane", identity=b"", capacity_bytes=1, max_batch_bytes=1
    )
    with pytest.raises(GatewayLostError, match="/run/lane"):
        here.granted(msgspec.structs.replace(GRANT, lane=offer))
    note = here.open_note(GRANT)
    assert note is not None
    assert here.past_calls() == [past(7)]
    here.ended()
    assert here.past_calls() == []
    here.close()


def test_without_keys_there_is_no_place(tmp_path: Path):
    with pytest.raises(KeyFileError, match=r"gateway\.key is not there"):
        place(tmp_path, NetAddress("127.0.0.1", 7900))

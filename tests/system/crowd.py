"""Many clients in groups that talk all the time, driven by one thread; each checks what it hears.

A client says something again when it has heard itself: by turns something that goes to the room at
once, and a note, which goes through the shard that owns the room. From the moment at which it has
entered its room, it must hear everything that is said and noted there, once, and each in order for
each speaker; a note may be told to be lost instead. Anything else ends the run with an
AssertionError that says who heard what.
"""

import selectors
import socket
import time
from collections.abc import Callable, Sequence
from struct import Struct

from cluster.iocp.packet_framing import HEADER, HEADER_BYTES, make_packet
from tests.applications.crowds import ENTER, HEARD, LOST, NOTE, NOTED, TALK

__all__ = ["Crowd", "Speaker"]

_SAYING = Struct("<IQ")
"""The speaker, and the number of what it says, from 1, apart from its notes."""

_KINDS = {HEARD: TALK, NOTED: NOTE, LOST: NOTE}
"""What was said when this is heard."""

Voice = tuple[int, int]
"""A speaker, and whether it talks or notes: each has numbers of its own."""

TURN_S = 0.005
ENTER_TIMEOUT_S = 20.0


class Speaker:
    """One client, in one room."""

    def __init__(self, number: int, room: int, port: int) -> None:
        self.number = number
        self.room = room
        self.port = port
        self.said = {TALK: 0, NOTE: 0}
        self.heard: dict[Voice, int] = {}
        """The number of what was heard last, of each voice."""
        self.lost_count = 0
        """Notes of its own that were told to be lost."""
        self.is_in = False
        """Whether it was told that it has entered."""
        self.due = 0.0
        """When it talks next; it waits to hear itself before."""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=ENTER_TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(make_packet(ENTER, b"%d" % room))
        self.socket.setblocking(False)
        self._missed: dict[Voice, int] = {}
        """What had been said when it entered; the rest it has to hear."""
        self._speaks_next = TALK
        self._received = b""

    def enter(self, others: Sequence["Speaker"]) -> None:
        """From now on it hears all that they say."""
        self.is_in = True
        self._missed = {
            (other.number, kind): count for other in others for kind, count in other.said.items()
        }

    def known(self, voice: Voice) -> int:
        """Return the number of the last thing of `voice` that it has heard, or need not."""
        return self.heard.get(voice, self._missed.get(voice, 0))

    @property
    def has_heard_itself(self) -> bool:
        """Whether what it said last has come back."""
        return all(
            self.heard.get((self.number, kind), 0) == said for kind, said in self.said.items()
        )

    def speak(self) -> None:
        """Say the next thing. So little is on the way that it always has room."""
        kind = self._speaks_next
        self._speaks_next = NOTE if kind == TALK else TALK
        self.said[kind] += 1
        saying = make_packet(kind, _SAYING.pack(self.number, self.said[kind]))
        assert self.socket.send(saying) == len(saying)

    def receive(self) -> list[tuple[int, bytes]]:
        """Return the packets that have come; AssertionError at the end of the connection."""
        data = self.socket.recv(1 << 18)
        assert data, f"speaker {self.number} was disconnected"
        data = self._received + data
        packets = []
        offset = 0
        while len(data) - offset >= HEADER_BYTES:
            size, packet_id = HEADER.unpack_from(data, offset)
            if len(data) - offset < size:
                break
            packets.append((packet_id, data[offset + HEADER_BYTES : offset + size]))
            offset += size
        self._received = data[offset:]
        return packets

    def hear(self, packet_id: int, payload: bytes) -> None:
        """Check what was heard against what was heard before."""
        speaker, number = _SAYING.unpack(payload)
        voice = (speaker, _KINDS[packet_id])
        last = self.heard.get(voice)
        self.heard[voice] = number
        self.lost_count += packet_id == LOST and speaker == self.number
        if last is not None:
            is_next = number == last + 1
        elif self.is_in:
            is_next = number <= self._missed.get(voice, 0) + 1
        else:
            is_next = True
        assert is_next, (
            f"speaker {self.number} in room {self.room} heard {number} of {voice} "
            f"({packet_id}), and {last} before; {self._missed.get(voice, 0)} came before it was in"
        )


class Crowd:
    """All clients, of nodes that run `tests.applications.crowds`. Close it at the end."""

    def __init__(self, ports: Sequence[int], speakers: int, rooms: int, pause_s: float) -> None:
        """Have `speakers` clients enter, evenly spread over the nodes at `ports` and the rooms.

        Each talks `pause_s` seconds after it has heard itself.
        """
        self.speakers: dict[int, Speaker] = {}
        self._gone: list[Speaker] = []
        self.is_talking = True
        self.heard_count = 0
        """Sayings that all have heard."""
        self._pause_s = pause_s
        self._selector = selectors.DefaultSelector()
        self._number = 0
        for index in range(speakers):
            # Every room has members on every node.
            self.join(index % rooms, ports[index // rooms % len(ports)])
        self.run_until(lambda: self.are_in, "all to be in")

    @property
    def are_in(self) -> bool:
        """Whether all have entered their rooms."""
        return all(speaker.is_in for speaker in self.speakers.values())

    def join(self, room: int, port: int) -> None:
        """Have one more client enter a room."""
        self._number += 1
        speaker = Speaker(self._number, room, port)
        self.speakers[speaker.number] = speaker
        self._selector.register(speaker.socket, selectors.EVENT_READ, speaker)

    def drop(self, speaker: Speaker) -> None:
        """Have nothing to do with a client any more, whose node has died."""
        del self.speakers[speaker.number]
        self._gone.append(speaker)  # some may hear its last words yet
        self._selector.unregister(speaker.socket)
        speaker.socket.close()

    def turn(self) -> None:
        """Talk where it is due, and hear what has come."""
        now = time.monotonic()
        for speaker in self.speakers.values():
            if self.is_talking and speaker.is_in and speaker.has_heard_itself:
                if not speaker.due:
                    speaker.due = now + self._pause_s
                elif now >= speaker.due:
                    speaker.due = 0.0
                    speaker.speak()
        for key, _ in self._selector.select(TURN_S):
            speaker = key.data
            for packet_id, payload in speaker.receive():
                if packet_id == ENTER:
                    speaker.enter([*self._in_room(speaker.room), *self._gone])
                else:
                    speaker.hear(packet_id, payload)
                    self.heard_count += 1

    def run_for(self, seconds: float) -> None:
        """Go on for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.turn()

    def run_until(self, holds: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
        """Go on until it holds; AssertionError names `what`, and what is missing."""
        end = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < end, f"{what}: not within {within_s} s; {self.missing()}"
            self.turn()

    def fall_silent(self) -> None:
        """Say no more, and wait until everything that was said has been heard by all."""
        self.is_talking = False
        self.run_until(lambda: not self.missing(), "everything that was said")
        self.run_for(0.3)  # nothing comes behind that

    def missing(self) -> list[str]:
        """Return what who has not heard yet, a few of it."""
        missing = [
            f"{listener.number} heard {known} of {said} of {speaker.number} ({kind})"
            for listener in self.speakers.values()
            for speaker in self._in_room(listener.room)
            for kind, said in speaker.said.items()
            if said > (known := listener.known((speaker.number, kind)))
        ]
        return missing[:10]

    @property
    def lost_count(self) -> int:
        """Notes that those who wrote them were told to be lost."""
        return sum(speaker.lost_count for speaker in self.speakers.values())

    def _in_room(self, room: int) -> list[Speaker]:
        return [speaker for speaker in self.speakers.values() if speaker.room == room]

    def close(self) -> None:
        """End all connections."""
        for speaker in self.speakers.values():
            speaker.socket.close()
        self._selector.close()

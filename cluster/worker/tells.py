"""What the handlers of one worker tell other shards, questions and answers to those included.

Whatever is told is an output of the handler call, or of the step of a coroutine, that tells it: it
goes out with its commit, and is taken back if it raises. Before that it needs credit, so that
nobody can tell a node more than it takes.
"""

import logging
from collections.abc import Callable, Coroutine, Generator, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from cluster.shared.key_records import KeyOwners, read_keys
from cluster.shared.messages import Grant
from cluster.shared.records import CREDIT, DRAIN, KEYS, TELL, UNDELIVERED
from cluster.shared.shard_ids import SHARDS_MAX, ShardId
from cluster.shared.takeover import TellState
from cluster.shared.tell_records import (
    BY_KEY,
    Purpose,
    content_bytes_max,
    is_answer,
    pack_tell,
    read_credit,
    read_message,
    read_tell,
    tell_cost,
)
from cluster.worker.outbox import Outbox
from cluster.worker.questions import Questions
from cluster.worker.tell_window import TellWindow

if TYPE_CHECKING:
    from cluster.shared.rendezvous import Key

__all__ = [
    "Full",
    "NoOwner",
    "Receiver",
    "Telling",
    "Tells",
    "granted_tells",
]

logger = logging.getLogger("cluster.worker")

Receiver = ShardId | int | str | bytes
"""A shard, or the index of one of this node; or a key, which is str or bytes."""


class Full(Exception):
    """There is no credit for one more message to that node; nothing was told."""


class NoOwner(Exception):
    """No node may own keys at present, as this one knows; nothing was told."""


class Telling:
    """What `App.tell` returns. For the loop's thread.

    A plain call that returns one has told the message. In a coroutine, `await` it: it ends when
    there was credit, and the message is told then.
    """

    __slots__ = ("_node", "_payload", "_tells", "is_told")

    def __init__(self, tells: "Tells", node: int, payload: bytes, is_told: bool) -> None:
        self._tells = tells
        self._node = node
        self._payload: bytes | None = payload
        self.is_told = is_told

    def __await__(self) -> Generator[Any, None, None]:
        if not self.is_told and self._payload is not None:
            payload, self._payload = self._payload, None
            waiting = self._tells.wait_and_tell(self._node, Purpose.TELL, payload)
            yield from waiting.__await__()
            self.is_told = True

    def __del__(self) -> None:
        if not self.is_told and self._payload is not None:
            self._tells.never_awaited(self._payload)

    def __repr__(self) -> str:
        return f"<Telling {'told' if self.is_told else 'not told'}>"


class Tells:
    """The messages that one worker tells. For the loop's thread."""

    def __init__(
        self,
        outbox: Outbox,
        name: ShardId,
        keys: KeyOwners,
        shard_count: int,
        window_bytes: int,
        states: Iterable[TellState],
        first_request: int,
        is_in_coroutine: Callable[[], bool],
    ) -> None:
        """Be the shard `name` among the nodes of `keys`; this one has `shard_count` shards.

        Each node may be told `window_bytes` at a time; `states` is what predecessors have told.
        Questions are numbered from `first_request`, which no life before has come near.
        `is_in_coroutine` tells whether what runs now may await.
        """
        self.name = name
        self.keys = keys
        """Which nodes there are, and which of them own keys."""
        self.nodes = keys.nodes
        self.full_count = 0
        """How often there was no credit."""
        self._outbox = outbox
        self._shard_count = shard_count
        self._window_bytes = window_bytes
        self._windows = {
            state.node: TellWindow(window_bytes, state.told, state.returned) for state in states
        }
        self._questions = Questions(first_request)
        self._is_in_coroutine = is_in_coroutine

    # -- telling -----------------------------------------------------------------------------------

    def tell(self, shard: ShardId | int, content: bytes) -> Telling:
        """Tell a shard a message; see `App.tell`."""
        return self._tell(*self._pack_for_shard(shard, Purpose.TELL, 0, content))

    def tell_key(self, key: "Key", content: bytes) -> Telling:
        """Tell the owner of a key a message; see `App.tell_key`."""
        return self._tell(*self._pack_for_key(key, Purpose.TELL, 0, content))

    def _tell(self, node: int, payload: bytes) -> Telling:
        if self._tell_now(node, Purpose.TELL, payload):
            return Telling(self, node, payload, is_told=True)
        if not self._is_in_coroutine():
            window = self._window(node)
            raise Full(
                f"{window.on_the_way_bytes} bytes of messages are on their way to node {node}, and "
                f"{self._window_bytes} may be; tell it later, or await it in a coroutine"
            )
        return Telling(self, node, payload, is_told=False)

    async def ask(self, to: Receiver, content: bytes, timeout_s: float) -> bytes:
        """Ask a question, and return the content of the answer; see `App.ask`."""
        if isinstance(to, str | bytes):
            return await self.ask_key(to, content, timeout_s)
        return await self._ask(self._pack_for_shard, to, content, timeout_s)

    async def ask_key(self, key: "Key", content: bytes, timeout_s: float) -> bytes:
        """Ask the owner of a key; see `App.ask_key`."""
        return await self._ask(self._pack_for_key, key, content, timeout_s)

    async def _ask(
        self,
        pack: Callable[[Any, Purpose, int, bytes], tuple[int, bytes]],
        to: Receiver,
        content: bytes,
        timeout_s: float,
    ) -> bytes:
        number = self._questions.number()
        node, payload = pack(to, Purpose.ASK, number, content)
        tell = partial(self._tell_or_wait, node, Purpose.ASK, payload)
        return await self._questions.ask(number, tell, to, timeout_s)

    def answer(
        self, to: ShardId, purpose: Purpose, request: int, content: bytes
    ) -> Coroutine[Any, Any, None] | None:
        """Answer a question; return what to await first when there is no credit for answers."""
        payload = pack_tell(to, purpose, request, content)
        return self._tell_or_wait(to.node, purpose, payload)

    async def wait_and_tell(self, node: int, purpose: Purpose, payload: bytes) -> None:
        """Tell what is packed once there is credit."""
        window = self._window(node)
        await window.wait(tell_cost(len(payload)), purpose)
        try:
            self._put(node, payload)
        except BaseException:
            window.leave_unused()
            raise

    def check_content(self, content: bytes) -> None:
        """Raise ValueError if no shard may be told something as long as `content`."""
        bytes_max = content_bytes_max(self._window_bytes)
        if len(content) > bytes_max:
            raise ValueError(
                f"a message of {len(content)} bytes, with the name of its type; {bytes_max} may be "
                "(at most 65536, less where links.retained_bytes_max is small)"
            )

    def never_awaited(self, payload: bytes) -> None:
        """What had no credit was dropped without being awaited."""
        logger.error(
            "a message for %s was not told: there was no credit, and nothing awaited it; in a "
            "coroutine write `await app.tell(...)`",
            read_tell(payload).receiver,
        )

    def _pack_for_shard(
        self, to: ShardId | int, purpose: Purpose, request: int, content: bytes
    ) -> tuple[int, bytes]:
        """Return the node and the payload; ValueError for a shard that there is not."""
        self.check_content(content)
        if isinstance(to, int):
            shard = ShardId(self.name.node, to)
        elif isinstance(to, tuple):
            shard = ShardId(*to)
        else:
            raise TypeError(
                f"a shard is a ShardId, or an index, not {type(to).__name__}: {to!r}; keys have "
                "tell_key and ask_key"
            )
        node, index = shard
        if node not in self.nodes:
            raise ValueError(f"there is no {shard}; the nodes are {self._list_nodes()}")
        if not 0 <= index < (self._shard_count if node == self.name.node else SHARDS_MAX):
            raise ValueError(
                f"there is no {shard}; this node, {self.name.node}, has shards 0 to "
                f"{self._shard_count - 1}, others {SHARDS_MAX - 1} at most; keys have tell_key and "
                "ask_key"
            )
        return node, pack_tell(shard, purpose, request, content)

    def _pack_for_key(
        self, key: "Key", purpose: Purpose, request: int, content: bytes
    ) -> tuple[int, bytes]:
        """Return the node and the payload; raises NoOwner, and what `encode_key` raises."""
        from cluster.shared.rendezvous import encode_key

        self.check_content(content)
        data = encode_key(key)
        node = self.owner_of(key)
        return node, pack_tell(ShardId(node, BY_KEY), purpose, request, content, data)

    def owner_of(self, key: "Key") -> int:
        """Return the id of the node that owns a key; see `App.owner_of`."""
        from cluster.shared.rendezvous import encode_key, owner

        data = encode_key(key)
        if not self.keys.owners:
            raise NoOwner(
                "no node may own keys: this one has no lease in the store of the cluster's members "
                "(`cluster status` says why)"
            )
        return owner(data, self.keys.owners)

    def owns(self, key: "Key") -> bool:
        """Whether this shard owns a key; see `App.owns`."""
        from cluster.shared.rendezvous import owner

        node = self.name.node
        if node not in self.keys.owners or owner(key, self.keys.owners) != node:
            return False
        return owner(key, [ShardId(node, index) for index in range(self._shard_count)]) == self.name

    def _list_nodes(self) -> str:
        return ", ".join(map(str, self.nodes))

    def _tell_or_wait(
        self, node: int, purpose: Purpose, payload: bytes
    ) -> Coroutine[Any, Any, None] | None:
        """Tell what is packed; return what to await first when there is no credit."""
        if self._tell_now(node, purpose, payload):
            return None
        return self.wait_and_tell(node, purpose, payload)

    def _tell_now(self, node: int, purpose: Purpose, payload: bytes) -> bool:
        if not self._window(node).has_credit(tell_cost(len(payload)), purpose):
            self.full_count += 1
            return False
        self._put(node, payload)
        return True

    def _put(self, node: int, payload: bytes) -> None:
        window, cost = self._window(node), tell_cost(len(payload))
        self._outbox.add(TELL, 0, payload, (window.take_back, cost))
        window.add(cost)

    def _window(self, node: int) -> TellWindow:
        window = self._windows.get(node)
        if window is None:
            window = self._windows[node] = TellWindow(self._window_bytes)
        return window

    # -- what comes back ---------------------------------------------------------------------------

    def hear(self, kind: int, payload: bytes) -> bool:
        """Take what an inbound record of `OF_SHARDS` has for this worker itself.

        False if a handler is to be called for it. To hear the same again changes nothing; what
        changes who owns keys is to be heard in its turn.
        """
        if kind == KEYS:
            self.keys = read_keys(payload)
            self.nodes = self.keys.nodes
            return False
        if kind == DRAIN:
            return False
        if kind == CREDIT:
            node, returned = read_credit(payload)
            self._window(node).hear(returned)
            return True
        if kind == UNDELIVERED:
            tell = read_tell(payload)
            if tell.purpose is Purpose.ASK:
                self._questions.undelivered(tell.request, tell.node)
            return tell.purpose is not Purpose.TELL
        if not is_answer(payload):
            return False
        message = read_message(payload)
        self._questions.answered(message.request, message.purpose, message.content)
        return True


def granted_tells(grant: Grant, outbox: Outbox, is_in_coroutine: Callable[[], bool]) -> Tells:
    """Return those of the shard that is granted, which go into `outbox`; the rest as `Tells`."""
    return Tells(
        outbox,
        ShardId(grant.node, grant.shard),
        _granted_keys(grant),
        grant.shard_count,
        grant.tell_window_bytes,
        grant.tells,
        # Of this life alone: an answer to a question of another one is for nobody.
        (grant.nonce ^ grant.incarnation << 32) % (1 << 64),
        is_in_coroutine,
    )


def _granted_keys(grant: Grant) -> KeyOwners:
    owners = tuple(grant.key_owners)
    others = tuple(node for node in grant.nodes if node not in owners)
    if not grant.nodes:
        return KeyOwners((grant.node,))
    return KeyOwners(owners, others)

"""The store in etcd 3.4 or newer, by its JSON gateway. Every call waits: for a thread of its own.

    iocp-cluster/NAME/nodes/00001    the entry of node 1, under its lease
    iocp-cluster/NAME/epochs/00001   the last epoch that node 1 began, for ever

An id passes from one machine to another, so its epochs are counted where the ids are: session ids
are never used again in the cluster.
"""

import base64
import json
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import msgspec

from cluster.gateway.membership.entries import (
    Entry,
    StoredEntry,
    choose_node,
    decode_entry,
    encode_entry,
)
from cluster.gateway.membership.store_access import StoreAccess
from cluster.shared.addresses import parse_store
from cluster.shared.run_directory import EPOCH_MAX
from cluster.shared.shard_ids import NODE_ID_MAX

if TYPE_CHECKING:
    from etcd3gw.client import Etcd3Client

__all__ = ["EtcdStore", "Joined", "StoreError", "StoreGoneError", "StoreMissingError"]

T = TypeVar("T")

TAKE_ATTEMPTS_MAX = 100
"""Others take ids at the same time; each attempt that comes to nothing was one of theirs."""

WATCH_SILENCE_S = 30.0
"""A watch that says nothing for so long is begun anew: its server may be gone."""

NO_ACCESS = StoreAccess()
"""For servers that let everybody in."""

_NODE_KEY = re.compile(rb"[0-9]{5}")


class StoreError(Exception):
    """The store cannot be reached, or says what it should not. The message is one line."""


class StoreGoneError(Exception):
    """The lease is over, or the entry is not this node's any more."""


class StoreMissingError(Exception):
    """The client library is not installed; the message tells the remedy."""


@dataclass(frozen=True, slots=True)
class Joined:
    """An id that was taken under a lease."""

    node: int
    lease: int
    epoch: int
    """The epoch to begin; 0 when none was asked for."""


class EtcdStore:
    """The nodes of one cluster, in the servers at `urls`, of which one that answers is asked.

    Not for two threads at a time. Calls raise StoreError when a server has not answered a request
    as a whole within `timeout_s` seconds, and so does each of the others.
    """

    def __init__(
        self, urls: list[str], cluster: str, timeout_s: float, access: StoreAccess = NO_ACCESS
    ) -> None:
        """Touch nothing yet; StoreMissingError without the client library."""
        try:
            import etcd3gw
            import requests
            from etcd3gw.exceptions import Etcd3Exception

            from cluster.gateway.membership.store_session import StoreSession
        except ImportError as error:
            raise StoreMissingError(
                'links.membership = "etcd": the client library is not installed '
                f"({error}); pip install 'iocp-cluster[etcd]'"
            ) from None
        self._errors: tuple[type[Exception], ...] = (
            Etcd3Exception,
            requests.RequestException,
            OSError,
            LookupError,
            TypeError,
            ValueError,
        )
        self._timeout_s = timeout_s
        self._prefix = f"iocp-cluster/{quote(cluster, safe='')}/"
        self._clients: list[Etcd3Client] = []
        for url in urls:
            scheme, host, port = parse_store(url)
            self._clients.append(
                etcd3gw.client(
                    host=host,
                    port=port,
                    protocol=scheme,
                    timeout=timeout_s,
                    api_path="/v3/",
                    session=StoreSession(url.removesuffix("/"), timeout_s, access),
                )
            )
        self._first = 0
        self._watched: requests.Response | None = None

    def close(self) -> None:
        """Give the connections back."""
        for client in self._clients:
            client.session.close()

    # -- requests ----------------------------------------------------------------------------------

    def read(self) -> list[StoredEntry]:
        """Return the entries of all nodes; what stands there under no node's id is none."""
        return self._ask(self._read)

    def join(
        self, lease_s: int, entry: Entry, wanted: int, last: int, first_epoch: int | None
    ) -> Joined:
        """Take a lease of `lease_s` seconds and an id under it, by `choose_node`.

        `first_epoch` is what an id begins with that the store has no epoch of; None: this life
        has its epoch already. Raises NodeTakenError as well.
        """
        return self._ask(
            lambda client: self._join(client, lease_s, entry, wanted, last, first_epoch)
        )

    def announce(self, node: int, lease: int, entry: Entry) -> list[StoredEntry]:
        """Write the entry of `node`, if it is still under `lease`, and return those of all.

        Raises StoreGoneError if it is not.
        """

        def announce(client: "Etcd3Client") -> list[StoredEntry]:
            key = self._node_key(node)
            mine = {"key": key, "target": "LEASE", "result": "EQUAL", "lease": lease}
            put = {"key": key, "value": _text(encode_entry(entry)), "lease": lease}
            if not _commit(client, [mine], [put]):
                raise StoreGoneError("the store has taken this node out of the list")
            return self._read(client)

        return self._ask(announce)

    def renew(self, lease: int) -> tuple[float, list[StoredEntry]]:
        """Keep `lease`; return for how many seconds from now, and the entries of all nodes.

        Raises StoreGoneError if there is no such lease.
        """

        def renew(client: "Etcd3Client") -> tuple[float, list[StoredEntry]]:
            from etcd3gw.lease import Lease

            left_s = Lease(lease, client).refresh()
            if left_s <= 0:
                raise StoreGoneError("the lease has ended in the store")
            return float(left_s), self._read(client)

        return self._ask(renew)

    def leave(self, lease: int) -> None:
        """Give `lease` back, and with it the entry."""

        def leave(client: "Etcd3Client") -> None:
            from etcd3gw.lease import Lease

            Lease(lease, client).revoke()

        self._ask(leave)

    def _ask(self, call: Callable[["Etcd3Client"], T]) -> T:
        """Return what `call` gives, of the first server that answers; StoreError without one."""
        reasons = []
        for _ in self._clients:
            client = self._clients[self._first]
            try:
                return call(client)
            except self._errors as error:
                reasons.append(_told(client, error))
                self._first = (self._first + 1) % len(self._clients)
        raise StoreError("; ".join(reasons))

    def _read(self, client: "Etcd3Client") -> list[StoredEntry]:
        prefix = f"{self._prefix}nodes/"
        stored = []
        for value, about in client.get_prefix(prefix):
            name = about["key"][len(prefix) :]
            if _NODE_KEY.fullmatch(name) and 1 <= int(name) <= NODE_ID_MAX:
                revision = int(about["mod_revision"])
                stored.append(StoredEntry(int(name), revision, decode_entry(value)))
        return stored

    def _join(
        self,
        client: "Etcd3Client",
        lease_s: int,
        entry: Entry,
        wanted: int,
        last: int,
        first_epoch: int | None,
    ) -> Joined:
        stored = self._read(client)
        choose_node(stored, entry.owner, wanted, last)  # before there is a lease to give back
        lease = client.lease(lease_s).id
        for _ in range(TAKE_ATTEMPTS_MAX):
            choice = choose_node(stored, entry.owner, wanted, last)
            key = self._node_key(choice.node)
            compared = [_at_revision(key, choice.revision)]
            written = _taken_over(entry, choice.earlier)
            puts: list[dict[str, Any]] = [
                {"key": key, "value": _text(encode_entry(written)), "lease": lease}
            ]
            epoch = 0
            if first_epoch is not None:
                epoch_key = f"{self._prefix}epochs/{choice.node:05}"
                epoch, revision = _next_epoch(client, epoch_key, first_epoch)
                compared.append(_at_revision(_text(epoch_key.encode()), revision))
                puts.append({"key": _text(epoch_key.encode()), "value": _text(b"%d" % epoch)})
            if _commit(client, compared, puts):
                return Joined(choice.node, lease, epoch)
            stored = self._read(client)
        raise ValueError(f"no id could be taken in {TAKE_ATTEMPTS_MAX} attempts")

    def _node_key(self, node: int) -> str:
        return _text(f"{self._prefix}nodes/{node:05}".encode())

    # -- watching ----------------------------------------------------------------------------------

    def watch(self) -> Iterator[None]:
        """Yield when the watch has begun, and each time that entries have changed since.

        Ends with StoreError, also after `WATCH_SILENCE_S` seconds without a word. Nothing else
        may be asked of this object meanwhile; `stop_watch` ends it from another thread.
        """
        client = self._clients[self._first]
        prefix = f"{self._prefix}nodes/".encode()
        end = prefix[:-1] + bytes([prefix[-1] + 1])
        request = {"create_request": {"key": _text(prefix), "range_end": _text(end)}}
        try:
            # The client's own watcher waits for ever, and its end shows nowhere.
            with client.session.post(
                client.get_url("/watch"),
                json=request,
                stream=True,
                timeout=(self._timeout_s, WATCH_SILENCE_S),
            ) as response:
                response.raise_for_status()
                self._watched = response
                for line in response.iter_lines():
                    if line.strip():
                        result = json.loads(line)["result"]
                        if result.get("canceled"):
                            break
                        if result.get("created") or result.get("events"):
                            yield
            raise StoreError(_told(client, "the watch has ended"))
        except self._errors as error:
            raise StoreError(_told(client, error)) from None
        finally:
            self._watched = None
            self._first = (self._first + 1) % len(self._clients)

    def stop_watch(self) -> None:
        """Have `watch` end soon. From any thread."""
        response = self._watched
        if response is None:
            return
        try:
            with socket.fromfd(
                response.raw.fileno(), socket.AF_INET, socket.SOCK_STREAM
            ) as connection:
                connection.shutdown(socket.SHUT_RDWR)
        except (OSError, ValueError, AttributeError):
            pass  # it has ended by itself


def _taken_over(entry: Entry, earlier: Entry | None) -> Entry:
    """Return what to write of a node that begins: it stays where it was until it says more."""
    if earlier is None or entry.address is not None:
        return entry
    return msgspec.structs.replace(entry, address=earlier.address, takes_keys=earlier.takes_keys)


def _next_epoch(client: "Etcd3Client", key: str, first: int) -> tuple[int, int]:
    """Return the epoch behind the one at `key`, and that key's revision: `first` and 0 if none."""
    for value, about in client.get(key, metadata=True):
        return int(value) % EPOCH_MAX + 1, int(about["mod_revision"])
    return first, 0


def _at_revision(key: str, revision: int) -> dict[str, Any]:
    return {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": revision}


def _commit(
    client: "Etcd3Client", compared: list[dict[str, Any]], puts: list[dict[str, Any]]
) -> bool:
    """Do all `puts` if all is as `compared`; return whether it was."""
    result = client.transaction(
        {"compare": compared, "success": [{"request_put": put} for put in puts], "failure": []}
    )
    return bool(result.get("succeeded"))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _told(client: "Etcd3Client", error: object) -> str:
    """Return in one short line what a server has answered; it goes to the log and to terminals."""
    detail = getattr(error, "detail_text", None) or error
    text = " ".join(str(detail).split()) or type(error).__name__
    if "user name is empty" in text:
        text = f"it lets in users only: set links.etcd_user and links.etcd_password_file ({text})"
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:300])
    return f"{client.base_url}: {shown}"

"""What types cost: a struct of three fields, decoded and answered, beside uvloop with msgspec.

Beside them a handler of bytes that echoes the same packets, for what of it is the hop.
"""

import socket

import msgspec

from benchmarks.comparison import compare_all, make_parser
from benchmarks.servers import Server, cluster_up, uvloop_typed
from benchmarks.typed_app import MOVE, Move

CASES = ((64, 1),)
ASKED, ANSWER = Move(2.5, 4.25, 7), Move(3.5, 3.25, 7)


def main() -> None:
    """Run the comparison."""
    options = make_parser(__doc__).parse_args()
    payload = msgspec.msgpack.encode(ASKED)
    flags = ("--workers", "1", "--lane", "shm")
    with (
        uvloop_typed() as uvloop,
        cluster_up(*flags, "--app", "benchmarks.typed_app:app", name="typed handler") as typed,
        cluster_up(*flags, name="handler of bytes, echo") as raw,
    ):
        for server in (uvloop, typed):
            check_answer(server, payload)
        compare_all((uvloop, typed, raw), CASES, options, payload)


def check_answer(server: Server, payload: bytes) -> None:
    """Ask `server` once: what is measured has to be right."""
    size = 4 + len(payload)
    packet = size.to_bytes(2, "little") + MOVE.to_bytes(2, "little") + payload
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(packet)
        answer = b""
        while len(answer) < size and (more := client.recv(size - len(answer))):
            answer += more
    if answer[:4] != packet[:4] or msgspec.msgpack.decode(answer[4:], type=Move) != ANSWER:
        raise SystemExit(f"{server.name} answered {answer!r}")


if __name__ == "__main__":
    main()

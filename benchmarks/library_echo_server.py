"""A framed echo on the bare session library, in one process: `library_echo_server.py DRIVER`.

SIGUSR1 has it collect garbage and print how many objects are left.
"""

import gc
import signal
import sys
from types import FrameType

from cluster.iocp import Cause, IocpCore, NetAddress, ServerService, Session, choose_driver


class FramedEcho(Session):
    """Answers every complete packet with itself, all those of one recv at a time."""

    __slots__ = ()

    recyclable = True

    def on_recv(self, data: bytes | memoryview) -> int:
        offset, end = 0, len(data)
        while end - offset >= 4:
            size = data[offset] | data[offset + 1] << 8
            if size < 4:
                self.abort(Cause.BAD_SIZE)
                return offset
            if end - offset < size:
                break
            offset += size
        if offset:
            self.send(data if offset == end else data[:offset])
        return offset


def print_object_count(number: int, frame: FrameType | None) -> None:
    """Print how many objects the collector knows."""
    gc.collect()
    sys.stdout.write(f"{len(gc.get_objects())}\n")
    sys.stdout.flush()


def main() -> None:
    """Listen on a free port of 127.0.0.1, print it, and serve until killed."""
    core = IocpCore(driver=choose_driver(sys.argv[1]))
    service = ServerService(NetAddress("127.0.0.1", 0), core, FramedEcho, 16_000)
    service.start()
    signal.signal(signal.SIGUSR1, print_object_count)
    sys.stdout.write(f"{service.listener.local_address.port}\n")
    sys.stdout.flush()
    while True:
        core.dispatch()


if __name__ == "__main__":
    main()

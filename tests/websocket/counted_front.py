"""`cluster websocket`, which tells how many connections are in its memory when it gets SIGUSR1."""

import gc
import signal
import sys
from types import FrameType

from websockets.asyncio.server import ServerConnection

from cluster.cli.commands import main


def _tell(number: int, frame: FrameType | None) -> None:
    gc.collect()
    count = sum(issubclass(type(each), ServerConnection) for each in gc.get_objects())
    sys.stderr.write(f"connections in memory: {count}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _tell)
    main()

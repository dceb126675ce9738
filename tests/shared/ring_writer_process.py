"""Writes numbered messages with checksums into the ring in FILE: COUNT (0: until killed), SEED."""

import mmap
import random
import sys
import time
import zlib
from pathlib import Path
from struct import Struct

from cluster.shared.ring import RingWriter

HEAD = Struct("<QI")
"""number of the message, checksum of what follows"""


def make_message(number: int, body: bytes) -> bytes:
    return HEAD.pack(number, zlib.crc32(body)) + body


def main() -> None:
    path, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(seed)
    noise = rng.randbytes(8_192)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        writer = RingWriter(memoryview(memory))
        size_max = min(len(noise), writer.message_bytes_max - HEAD.size)
        print("ready", flush=True)
        number = 0
        while count == 0 or number < count:
            for _ in range(rng.randrange(1, 20)):
                if number == count != 0:
                    break
                size = rng.randrange(size_max) if rng.random() < 0.1 else rng.randrange(100)
                message = make_message(number, noise[:size])
                while not writer.append(message):
                    writer.publish()
                    time.sleep(0)
                number += 1
            writer.publish()
        writer.close()


if __name__ == "__main__":
    main()

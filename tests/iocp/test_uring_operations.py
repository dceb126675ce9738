"""The table of operations in flight, on a ring that only notes what it is given."""

from typing import Any

from cluster.iocp.net_address import NetAddress
from tests.iocp.uring_port import uring_memory, uring_operations

ANY = uring_operations.Operation(lambda operation, result: None, None, None, None)
CONNECT = 16


class NotingRing:
    """Keeps the numbers of what was pushed, and what each entry points to."""

    def __init__(self) -> None:
        self.pushed: list[tuple[int, int]] = []

    def push(
        self, opcode: int, fd: int, number: int, addr: int = 0, length: int = 0, **rest: Any
    ) -> None:
        self.pushed.append((number, addr))


def test_no_number_is_used_twice_and_none_is_one_with_a_meaning():
    ring: Any = NotingRing()
    operations = uring_operations.Operations(ring)
    numbers = []
    for _ in range(5):
        numbers.append(operations.new_number())
        numbers.append(operations.push_poll(3, 1, ANY))
        operations.in_flight.pop(numbers[-1])
    assert len(set(numbers)) == 10
    assert uring_operations.WAKE not in numbers
    operations.cancel(numbers[0])
    operations.cancel_all()
    assert not {number for number, _ in ring.pushed[5:]} & {*numbers, uring_operations.WAKE}


def test_an_operation_is_held_with_its_memory_from_the_push_until_it_is_taken_out():
    ring: Any = NotingRing()
    operations = uring_operations.Operations(ring)
    address = uring_memory.SocketAddress(NetAddress("127.0.0.1", 9))
    number = operations.push(CONNECT, 3, ANY._replace(memory=address), address.address)
    waiting = operations.push_poll(3, 1, ANY)
    assert ring.pushed[0] == (number, address.address)
    assert operations.in_flight[number].memory is address
    assert operations.numbers_with_memory() == {number}
    operations.in_flight.pop(number)
    assert operations.numbers_with_memory() == set()
    assert list(operations.in_flight) == [waiting]


def test_memory_goes_back_to_its_owner_when_everything_is_given_up():
    ring: Any = NotingRing()
    operations = uring_operations.Operations(ring)
    data = bytearray(b"pinned")
    gather = uring_memory.Gather([data])
    operations.push(9, 3, ANY._replace(memory=gather), gather.address, 1)
    operations.release()
    assert not operations.in_flight
    data.append(0)  # a bytearray that is exported cannot grow

"""A ring of io_uring: the three system calls, and the two queues that they map.

Knows nothing of sockets. Shared words are written by plain stores of their own width; what is
behind them is written first. Numbers and layouts are those of `include/uapi/linux/io_uring.h`,
which are the same on every processor.
"""

import ctypes
import errno
import mmap
import os
from collections import deque
from collections.abc import Iterable
from struct import Struct

__all__ = [
    "CQE_BUFFER",
    "CQE_MORE",
    "Cqe",
    "Ring",
    "register",
]

Cqe = tuple[int, int, int, int]
"""user_data, result (negative: an errno), flags, number of the provided buffer"""

CQE_BUFFER = 1 << 0
"""Flag of a CQE: there is a provided buffer."""
CQE_MORE = 1 << 1
"""Flag of a CQE: the operation goes on and completes again."""

_SETUP, _ENTER, _REGISTER = 425, 426, 427

_SETUP_CQSIZE = 1 << 3
_SETUP_CLAMP = 1 << 4
_SETUP_R_DISABLED = 1 << 6
_SETUP_SUBMIT_ALL = 1 << 7
_SETUP_TASKRUN_FLAG = 1 << 9
_SETUP_SINGLE_ISSUER = 1 << 12
_SETUP_DEFER_TASKRUN = 1 << 13

_FEAT_SINGLE_MMAP = 1 << 0
_FEAT_NODROP = 1 << 1
_FEAT_EXT_ARG = 1 << 8

_ENTER_GETEVENTS = 1 << 0
_ENTER_EXT_ARG = 1 << 3

_SQ_CQ_OVERFLOW = 1 << 1
_SQ_TASKRUN = 1 << 2
_SQ_NEEDS_ENTER = _SQ_CQ_OVERFLOW | _SQ_TASKRUN

_OFFSET_SQES = 0x1000_0000

_REGISTER_ENABLE_RINGS = 12

_PARAMS = Struct("<8I2I" + "8IQ" + "8IQ")
"""entries, flags and features; reserved; offsets of the submission and of the completion ring"""
_SQE = Struct("<BBHiQQIIQHHiQQ")
"""opcode, flags, ioprio, fd, off, addr, len, op_flags, user_data, buf_group, personality, ..."""
_CQE = Struct("<QiHH")
_EXT_ARG = Struct("<QIIQ")
"""signal mask, its size, minimal wait, address of the timespec"""
_EXT_ARG_SIZE = ctypes.c_size_t(_EXT_ARG.size)
_TIMESPEC = Struct("<qq")

_WORD = 0xFFFF_FFFF

_WAIT_SLACK_S = 0.0005
"""A wait that is shorter than the last one by less than this takes that one's time: at load, where
wait follows wait, each is shorter by a little."""

_ENTRIES = 1_024
"""Operations that one call submits at most; more of them are submitted in several."""
_CQ_ENTRIES = 8_192
"""Completions that wait without the kernel's overflow list. 128 KiB."""

_SETTLE_MAX = 256
"""The kernel carries out about 20 operations in one call; more come in all the time."""

# Without `argtypes`, whose conversions take two thirds of a call's 1.7 µs. A plain int is passed as
# 32 bits then; what is longer for the kernel, an address or a size, goes as an object of ctypes.
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def _call(number: int, *arguments: int) -> int:
    """Make one system call; raises OSError."""
    result: int = _syscall(number, *map(ctypes.c_long, arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def register(fd: int, opcode: int, argument: int, count: int) -> None:
    """Call io_uring_register; `argument` is an address. Raises OSError."""
    _call(_REGISTER, fd, opcode, argument, count)


class Ring:
    """One ring. For the polling thread, from `enable` on."""

    __slots__ = (
        "_argument",
        "_cq_entries",
        "_cq_head",
        "_cq_mask",
        "_cq_tail",
        "_cqes",
        "_head",
        "_maps",
        "_overflow",
        "_rings",
        "_sq_entries",
        "_sq_flags",
        "_sq_head",
        "_sq_mask",
        "_sq_tail",
        "_sqes",
        "_tail",
        "_to_submit",
        "_views",
        "_wait_s",
        "_words",
        "fd",
    )

    def __init__(self, is_shared: bool) -> None:
        """Set up a ring, disabled; raises OSError with the kernel's reason.

        One that is not shared belongs to the thread that enables it: completions are then made
        only when that thread asks for them, and it is never interrupted. A shared ring cannot
        have that, nor may its threads wait for one another's system calls.
        """
        flags = _SETUP_CQSIZE | _SETUP_CLAMP | _SETUP_R_DISABLED | _SETUP_SUBMIT_ALL
        if not is_shared:
            flags |= _SETUP_SINGLE_ISSUER | _SETUP_DEFER_TASKRUN | _SETUP_TASKRUN_FLAG
        params = ctypes.create_string_buffer(
            _PARAMS.pack(0, _CQ_ENTRIES, flags, *[0] * (_PARAMS_FIELDS - 3)), _PARAMS.size
        )
        self.fd = _call(_SETUP, _ENTRIES, ctypes.addressof(params))
        self._maps: list[mmap.mmap] = []
        self._views: list[memoryview] = []
        try:
            os.set_inheritable(self.fd, False)
            self._map(_PARAMS.unpack(params.raw))
        except BaseException:
            self.close()
            raise
        self._head = 0
        self._tail = 0
        self._to_submit = 0
        self._overflow: deque[tuple[int, ...]] = deque()
        """Operations for which the queue has no room: at most a few for each open handle."""
        self._wait_s = 0.0
        # The argument of every wait: EXT_ARG, and behind it the timespec that it points to.
        self._argument = ctypes.create_string_buffer(_EXT_ARG.size + _TIMESPEC.size)
        timespec = ctypes.addressof(self._argument) + _EXT_ARG.size
        _EXT_ARG.pack_into(self._argument, 0, 0, 0, 0, timespec)

    def _map(self, params: tuple[int, ...]) -> None:
        sq_entries, cq_entries = params[0], params[1]
        features = params[5]
        wanted = _FEAT_SINGLE_MMAP | _FEAT_NODROP | _FEAT_EXT_ARG
        if features & wanted != wanted:
            raise OSError(errno.EOPNOTSUPP, f"the kernel's io_uring lacks features ({features:#x})")
        sq_head, sq_tail, sq_mask, _, sq_flags, _, sq_array, *_ = params[10:19]
        cq_head, cq_tail, cq_mask, _, _, cqes, *_ = params[19:28]
        size = max(sq_array + 4 * sq_entries, cqes + _CQE.size * cq_entries)
        rings = self._map_view(size, 0)
        words = rings[: size & ~3].cast("I")
        self._views.append(words)
        self._words = words
        self._sq_head, self._sq_tail, self._sq_flags = sq_head // 4, sq_tail // 4, sq_flags // 4
        self._cq_head, self._cq_tail = cq_head // 4, cq_tail // 4
        self._sq_mask, self._cq_mask = words[sq_mask // 4], words[cq_mask // 4]
        self._sq_entries, self._cq_entries = sq_entries, cq_entries
        self._rings = self._maps[-1]
        self._cqes = cqes
        for index in range(sq_entries):
            words[sq_array // 4 + index] = index
        self._sqes = self._map_view(_SQE.size * sq_entries, _OFFSET_SQES)

    def _map_view(self, size: int, offset: int) -> memoryview:
        mapped = mmap.mmap(
            self.fd,
            size,
            flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0),
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
            offset=offset,
        )
        self._maps.append(mapped)
        view = memoryview(mapped)
        self._views.append(view)
        return view

    def enable(self) -> None:
        """Start the ring; an unshared one belongs to the calling thread from here on."""
        register(self.fd, _REGISTER_ENABLE_RINGS, 0, 0)

    # -- submitting --------------------------------------------------------------------------------

    def push(
        self,
        opcode: int,
        fd: int,
        user_data: int,
        addr: int = 0,
        length: int = 0,
        *,
        off: int = 0,
        op_flags: int = 0,
        flags: int = 0,
        ioprio: int = 0,
        buf_group: int = 0,
    ) -> None:
        """Queue one operation for the next `enter`; what `addr` points to is kept by the caller."""
        entry = (
            opcode,
            flags,
            ioprio,
            fd,
            off,
            addr,
            length,
            op_flags,
            user_data,
            buf_group,
            0,
            0,
            0,
            0,
        )
        if self._to_submit < self._sq_entries and not self._overflow:
            self._put(entry)
        else:
            self._overflow.append(entry)

    def _put(self, entry: tuple[int, ...]) -> None:
        tail = self._tail
        # The kernel looks at the queue in `enter` only.
        _SQE.pack_into(self._sqes, (tail & self._sq_mask) * _SQE.size, *entry)
        self._tail = self._words[self._sq_tail] = (tail + 1) & _WORD
        self._to_submit += 1

    def enter(self, wait_s: float) -> None:
        """Submit what was pushed, and wait up to `wait_s` seconds for a completion.

        One system call, or none when there is nothing to submit and nothing to wait for. May
        return early, for a signal too, and half a millisecond late. Raises OSError.
        """
        if self._overflow and not self._submit_overflow():
            wait_s = 0  # the kernel takes none until completions were taken
        words = self._words
        if wait_s and self._head == words[self._cq_tail]:
            submitted = self._wait(wait_s)
        elif self._to_submit or words[self._sq_flags] & _SQ_NEEDS_ENTER:
            submitted = _syscall(_ENTER, self.fd, self._to_submit, 0, _ENTER_GETEVENTS, None, None)
        else:
            return
        if submitted == self._to_submit:
            self._to_submit = 0
        else:
            self._not_all_submitted(submitted)

    def _wait(self, wait_s: float) -> int:
        if not 0.0 <= self._wait_s - wait_s < _WAIT_SLACK_S:
            self._wait_s = wait_s
            seconds = int(wait_s)
            nanoseconds = int((wait_s - seconds) * 1_000_000_000)
            _TIMESPEC.pack_into(self._argument, _EXT_ARG.size, seconds, nanoseconds)
        result: int = _syscall(
            _ENTER,
            self.fd,
            self._to_submit,
            1,
            _ENTER_GETEVENTS | _ENTER_EXT_ARG,
            self._argument,
            _EXT_ARG_SIZE,
        )
        return result

    def _submit_overflow(self) -> bool:
        """Submit until all that overflows is in the queue; False if the kernel takes no more."""
        overflow = self._overflow
        while overflow:
            # The queue is empty here when the kernel took it after having refused it at first.
            if waiting := self._to_submit:
                self._not_all_submitted(
                    _syscall(_ENTER, self.fd, waiting, 0, _ENTER_GETEVENTS, None, None)
                )
                if self._to_submit == waiting:
                    return False
            while overflow and self._to_submit < self._sq_entries:
                self._put(overflow.popleft())
        return True

    def _not_all_submitted(self, result: int) -> None:
        """Take note of what io_uring_enter returned, unless it took everything."""
        self._to_submit = (self._tail - self._words[self._sq_head]) & _WORD
        if result >= 0:
            return
        code = ctypes.get_errno()
        # The time is up; a signal; or the kernel wants completions to be taken first.
        if code not in (errno.ETIME, errno.EINTR, errno.EBUSY, errno.EAGAIN):
            raise OSError(code, os.strerror(code))

    def settle(self) -> None:
        """Submit what was pushed, and let the kernel carry out all that is due by now."""
        self.enter(0)
        for _ in range(_SETTLE_MAX):
            if not self._words[self._sq_flags] & _SQ_TASKRUN:
                return
            self.enter(0)

    # -- completions -------------------------------------------------------------------------------

    def reap(self, limit: int) -> Iterable[Cqe]:
        """Take up to `limit` completions that are there; what is returned is false without any."""
        words = self._words
        head = self._head
        count = (words[self._cq_tail] - head) & _WORD
        if count == 0:
            return ()
        if count > limit:
            count = limit
        self._head = (head + count) & _WORD
        first = self._cqes + (head & self._cq_mask) * _CQE.size
        last = first + count * _CQE.size
        end = self._cqes + self._cq_entries * _CQE.size
        if last <= end:
            taken = self._rings[first:last]
        else:
            taken = self._rings[first:end] + self._rings[self._cqes : self._cqes + last - end]
        words[self._cq_head] = self._head
        return _CQE.iter_unpack(taken)

    def has_more(self) -> bool:
        """Whether another `enter` would bring completions that are due already.

        The kernel makes them in portions, and keeps those that overflow the queue.
        """
        words = self._words
        return words[self._sq_flags] & _SQ_NEEDS_ENTER != 0 or words[self._cq_tail] != self._head

    def close(self) -> None:
        """Unmap and close. What is in flight is cancelled by the kernel, some time later."""
        for view in reversed(self._views):
            view.release()
        self._views.clear()
        for mapped in self._maps:
            mapped.close()
        self._maps.clear()
        os.close(self.fd)


_PARAMS_FIELDS = len(_PARAMS.unpack(bytes(_PARAMS.size)))

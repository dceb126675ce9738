"""Networks of a test's own, which the kernel keeps as long as the test holds them. Linux only.

Nothing has a name and nothing is mounted, so nothing is left behind whatever becomes of the test.
"""

import ctypes
import os
import shutil
import subprocess
from threading import Thread
from typing import Self

__all__ = ["NamespaceError", "NetworkNamespace", "connect"]

CLONE_NEWNET = 0x4000_0000
THREAD_NETWORK = "/proc/thread-self/ns/net"


class NamespaceError(Exception):
    """There can be no namespaces here; the message says why."""


class NetworkNamespace:
    """A network that has nothing but a loopback interface. Close it at the end.

    `with namespace:` has this thread in it: the sockets that it makes there, and the processes
    that it starts, belong to that network for good.
    """

    def __init__(self) -> None:
        """Make it; raises NamespaceError where that needs a privilege or a program that is not."""
        if shutil.which("ip") is None:
            raise NamespaceError("there is no program `ip`")
        self._outside: list[int] = []
        made: list[int | NamespaceError] = []

        def make() -> None:
            try:
                _call("unshare", CLONE_NEWNET)
                made.append(os.open(THREAD_NETWORK, os.O_RDONLY | os.O_CLOEXEC))
            except (OSError, AttributeError) as error:
                made.append(NamespaceError(f"no network namespace can be made: {error}"))

        thread = Thread(target=make)
        thread.start()
        thread.join()
        (result,) = made
        if isinstance(result, NamespaceError):
            raise result
        self._fd = result
        try:
            self.ip("link set lo up")
        except NamespaceError:
            self.close()
            raise

    @property
    def path(self) -> str:
        """A path by which programs find it."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def ip(self, command: str) -> None:
        """Run `ip` in it; raises NamespaceError with what it says."""
        with self:
            done = subprocess.run(
                ["ip", *command.split()], capture_output=True, text=True, timeout=20, check=False
            )
        if done.returncode:
            raise NamespaceError(f"ip {command}: {done.stderr.strip()}")

    def __enter__(self) -> Self:
        self._outside.append(os.open(THREAD_NETWORK, os.O_RDONLY | os.O_CLOEXEC))
        _call("setns", self._fd, CLONE_NEWNET)
        return self

    def __exit__(self, *_: object) -> None:
        outside = self._outside.pop()
        try:
            _call("setns", outside, CLONE_NEWNET)
        finally:
            os.close(outside)

    def close(self) -> None:
        """Let go of it; it ends with its last process and socket."""
        os.close(self._fd)


def connect(one: NetworkNamespace, other: NetworkNamespace, addresses: tuple[str, str]) -> None:
    """Lay a cable between two networks, `cable` in both; raises NamespaceError.

    The addresses are as ADDRESS/LENGTH, of this end and of that.
    """
    one.ip(f"link add cable type veth peer name cable netns {other.path}")
    for namespace, address in zip((one, other), addresses, strict=True):
        namespace.ip(f"address add {address} dev cable")
        namespace.ip("link set cable up")


def _call(name: str, *arguments: int) -> None:
    """Call a function of the C library; raises OSError."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")

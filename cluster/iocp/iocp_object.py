"""What a completion is delivered to: anything that has a handle and can dispatch events."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.iocp.driver.contract import Handle
    from cluster.iocp.iocp_event import IocpEvent

__all__ = ["IocpObject"]


class IocpObject(ABC):
    """Owner of registered operations.

    `handle` is what the driver works on: a socket of that driver, or None for an object that
    only takes posted events.
    """

    __slots__ = ("handle",)

    handle: "Handle | None"

    @abstractmethod
    def dispatch(self, event: "IocpEvent", num_bytes: int) -> None:
        """Take the completion of `event`; `num_bytes` were moved. Called by `IocpCore` only."""

    def on_dispatch_error(self, event: "IocpEvent", error: Exception) -> None:
        """Decide what an exception that `dispatch` let out means; by default it goes on up."""
        raise error

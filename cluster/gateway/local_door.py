"""Where the processes of this machine come in: the control plane, and the lanes of workers here."""

from collections.abc import Callable
from contextlib import ExitStack

import zmq

from cluster.gateway.control import ControlPlane
from cluster.iocp import IocpCore
from cluster.shared.config import Config
from cluster.shared.endpoints import choose_endpoints
from cluster.shared.lane_choice import open_lane_hub
from cluster.shared.messages import ControlMessage
from cluster.shared.run_directory import RunDirectory

__all__ = ["LocalDoor"]


class LocalDoor:
    """The sockets of one gateway for its own machine. For the dispatching thread."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        core: IocpCore,
        on_message: Callable[[bytes, ControlMessage], None],
    ) -> None:
        """Bind in `directory`, which stays the caller's, as `core` does.

        Raises OSError, zmq.ZMQError or RunDirectoryError.
        """
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with ExitStack() as undo:
            undo.callback(self._context.destroy, 0)
            self._endpoints = choose_endpoints(directory)
            (control_address, curve), lane_endpoint = self._endpoints.open()
            self.hub = open_lane_hub(
                config.lane.kind,
                directory.sockets.lane_path(),
                self._context,
                lane_endpoint,
                core.driver.wake_descriptor,
            )
            undo.callback(self.hub.close)
            self.control = ControlPlane(self._context, control_address, core, on_message, curve)
            undo.pop_all()

    def publish(self) -> None:
        """Tell where the control plane is, for others to come; raises RunDirectoryError."""
        self._endpoints.publish(self.control.endpoint)

    def close(self, linger_ms: int) -> None:
        """Close all, giving what was sent last `linger_ms` to leave. Lanes are closed by then."""
        self.hub.close()
        self.control.close(linger_ms)
        self._context.term()

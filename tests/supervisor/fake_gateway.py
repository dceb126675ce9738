"""A gateway that only speaks the control plane, and misbehaves as its first argument says.

Run as a script: BEHAVIOUR ENDPOINT PARENT_PID. Every worker that is reported as started is ready
at once. When all are ready it sends SIGTERM to its parent, to begin what is to be tested.
"""

import os
import signal
import sys
from contextlib import suppress
from typing import Literal

import zmq

from cluster.shared.messages import (
    ControlMessage,
    Drain,
    Drained,
    GatewayReady,
    Refuse,
    ShardReport,
    SupervisorHello,
    WorkerGone,
    WorkerReport,
    decode_message,
    encode_message,
)

RECEIVE_TIMEOUT_MS = 30_000

DEATHS = 7
"""More than a supervisor stands if none of them led to anything."""

CUT_OFF: dict[str, Literal["stuck", "fenced"]] = {
    "finds the first worker stuck": "stuck",
    "fences the first worker": "fenced",
}
"""What is told of the first worker, by the behaviour."""


class FakeGateway:
    """Answers one supervisor, which has one shard."""

    def __init__(self, behaviour: str, endpoint: str, parent_pid: int) -> None:
        self._behaviour = behaviour
        self._parent_pid = parent_pid
        self._identity = b""
        self._socket = zmq.Context().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 1_000)
        self._socket.setsockopt(zmq.RCVTIMEO, RECEIVE_TIMEOUT_MS)
        self._socket.bind(endpoint)

    def run(self) -> int:
        """Serve until the behaviour says to end; return the exit code."""
        while True:
            self._identity, frame = self._socket.recv_multipart()
            exit_code = self._take(decode_message(frame))
            if exit_code is not None:
                self._socket.close()
                return exit_code

    def _send(self, message: ControlMessage) -> None:
        self._socket.send_multipart([self._identity, encode_message(message)])

    def _take(self, message: ControlMessage) -> int | None:
        match message:
            case SupervisorHello() if self._behaviour == "refuses":
                self._send(Refuse(reason="you are from another time"))
            case SupervisorHello() if self._behaviour == "ends":
                return 6
            case SupervisorHello() if self._behaviour == "never answers":
                return None
            case SupervisorHello():
                self._send(self._ready(os.getpid() + 1))  # a stranger's, to be ignored
                self._send(self._ready(os.getpid()))
                self._send(self._ready(os.getpid()))
            case WorkerReport() if self._behaviour == "never has workers":
                return None
            case WorkerReport(restarts=0) if self._behaviour == "has the second worker":
                return None
            case WorkerReport(state=state, restarts=restarts) if (
                self._behaviour == "has the first worker" and (restarts or state != "starting")
            ):
                return None
            case WorkerReport(state=state, restarts=restarts, pid=pid) if (
                self._behaviour == "sets something aside at each death" and restarts < DEATHS
            ):
                if state == "starting" and pid is not None:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
            case WorkerGone(pid=pid) if self._behaviour == "sets something aside at each death":
                self._send(
                    ShardReport(
                        shard=0,
                        pid=pid,
                        state="ended",
                        committed=False,
                        set_aside=True,
                    )
                )
            case WorkerReport(state="starting", restarts=0, pid=int(pid)) if (
                self._behaviour in CUT_OFF
            ):
                self._report(pid, "ready", committed=True)
                self._report(pid, CUT_OFF[self._behaviour], committed=True)
                self._report(pid, "ready", committed=True)  # too late, to be ignored
            case WorkerReport(restarts=0) if self._behaviour in CUT_OFF:
                return None
            case WorkerReport(state="starting", pid=int(pid)):
                self._report(pid, "ready", shard=99)  # there is none such
                self._report(pid, "ready")
            case WorkerReport(state="ready"):
                os.kill(self._parent_pid, signal.SIGTERM)
            case Drain():
                return self._drain()
        return None

    def _report(
        self,
        pid: int,
        state: Literal["ready", "stuck", "fenced"],
        committed: bool = False,
        shard: int = 0,
    ) -> None:
        self._send(
            ShardReport(
                shard=shard,
                pid=pid,
                state=state,
                committed=committed,
                reason="a record of no kind" if state == "fenced" else "",
            )
        )

    def _ready(self, pid: int) -> GatewayReady:
        return GatewayReady(
            pid=pid, node=7, epoch=1, listen="[::1]:99", driver="readiness", lane="zmq"
        )

    def _drain(self) -> int | None:
        match self._behaviour:
            case (
                "drains"
                | "has the second worker"
                | "finds the first worker stuck"
                | "fences the first worker"
                | "sets something aside at each death"
            ):
                self._send(Drained())
                return 0
            case "drains silently":
                return 0
            case "drains and stays":
                self._send(Drained())
            case "dies":
                return 5
        return None


if __name__ == "__main__":
    sys.exit(FakeGateway(sys.argv[1], sys.argv[2], int(sys.argv[3])).run())

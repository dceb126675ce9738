"""What the gateway's ends have in common whose records stay in this process until committed."""

from abc import ABC, abstractmethod
from typing import Any

from cluster.shared.lane import Commit, LaneState
from cluster.shared.lane_inbound import InboundLog
from cluster.shared.lane_outbound import OutboundSequence
from cluster.shared.records import make_record

__all__ = ["KeptLane"]


class KeptLane(ABC):
    """The part of `GatewayLane` that moves nothing."""

    def __init__(self, capacity_bytes: int, max_batch_bytes: int) -> None:
        self._log = InboundLog(capacity_bytes)
        self._sequence = OutboundSequence(max_batch_bytes)
        self._state = LaneState.VACANT
        self.append_packets = self._log.append_packets

    @property
    def state(self) -> LaneState:
        return self._state

    @property
    def log(self) -> InboundLog:
        return self._log

    @property
    def serial_applied(self) -> int:
        return self._sequence.serial_applied

    @property
    def serial_received(self) -> int:
        return self._sequence.serial

    @property
    def is_full(self) -> bool:
        return self._log.is_full

    def append(
        self, kind: int, session: int, payload: bytes, packet_count: int = 0, owner: Any = None
    ) -> int:
        record = make_record(kind, session, payload, packet_count)
        return self._log.append(kind, record, packet_count, owner)

    @abstractmethod
    def revoke(self) -> None: ...

    def close(self) -> None:
        self.revoke()
        self._state = LaneState.CLOSED

    def _begin(self, incarnation: int) -> Commit:
        """Go over to a new incarnation; return where it goes on."""
        self._sequence.grant(incarnation)
        self._state = LaneState.GRANTED
        return self._log.rewind()

    def _check_vacant(self) -> None:
        if self._state is not LaneState.VACANT:
            raise ValueError(f"the lane is {self._state.value}; it can be granted when vacant")

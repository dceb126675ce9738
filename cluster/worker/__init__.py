"""The worker: runs an application's handlers for one shard.

Applications import what they need from here: `from cluster.worker import App, Session`.
"""

from cluster.shared.shard_ids import ShardId
from cluster.shared.user_records import BindResult
from cluster.worker.app import App
from cluster.worker.app_timers import TimerHandle
from cluster.worker.binds import Binding
from cluster.worker.outbox import OutputTooLarge
from cluster.worker.packet_stream import Packets
from cluster.worker.questions import AskFailed, Undelivered
from cluster.worker.session import Session
from cluster.worker.tells import Full, NoOwner, Telling

__all__ = [
    "App",
    "AskFailed",
    "BindResult",
    "Binding",
    "Full",
    "NoOwner",
    "OutputTooLarge",
    "Packets",
    "Session",
    "ShardId",
    "Telling",
    "TimerHandle",
    "Undelivered",
]

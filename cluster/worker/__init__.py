"""The worker: runs an application's handlers for one shard.

Applications import what they need from here: `from cluster.worker import App, Session`.
"""

from cluster.worker.app import App
from cluster.worker.outbox import OutputTooLarge
from cluster.worker.session import Session

__all__ = ["App", "OutputTooLarge", "Session"]

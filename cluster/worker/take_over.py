"""What a worker takes over from its predecessors, before the first record of its own.

The grant replays it: the sessions as of the commit, and the calls that coroutines had deferred.
"""

from collections.abc import Callable

from cluster.shared.collector import no_collections
from cluster.shared.messages import Grant
from cluster.shared.note import HandlerCall
from cluster.shared.records import OPENED
from cluster.worker.dispatcher import Dispatcher
from cluster.worker.inbound_call import InboundCall

__all__ = ["take_over"]


def take_over(grant: Grant, dispatcher: Dispatcher, publish_if_due: Callable[[], None]) -> None:
    """Give `dispatcher` the sessions, and then the deferred calls, of `grant`.

    The grant, which lasts as long as the worker, has neither afterwards: what is saved for a
    session, and the payload of a call, are forgotten with them.
    """
    opening = {call.session for call in grant.deferred if call.kind == OPENED}
    with no_collections():
        for session in grant.sessions:
            dispatcher.resume(session, session.id in opening)
            publish_if_due()
        _take_over_deferred(grant, dispatcher)
    grant.sessions.clear()
    grant.deferred.clear()


def _take_over_deferred(grant: Grant, dispatcher: Dispatcher) -> None:
    begun: set[int] = set()
    for call in grant.deferred:
        inbound = InboundCall(
            HandlerCall(call.position, call.index),
            call.kind,
            call.payload,
            call.sequence,
            is_redelivered=True,
            was_begun=call.session not in begun,
        )
        begun.add(call.session)
        dispatcher.deferral.take_over(call.session, inbound)

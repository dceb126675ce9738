"""ZeroMQ sockets with the options that all of a node's have, each with its reason."""

import zmq

from cluster.shared.endpoints import Curve

__all__ = ["HIGH_WATER_MARK", "open_control_socket", "open_lane_socket"]

HIGH_WATER_MARK = 4_096
"""Messages in a socket's queue. The byte bounds of a lane are reached long before."""

RECONNECT_MS = 10
"""Whoever connects starts together with the gateway; each wait is time to ready."""


def open_control_socket(
    context: "zmq.Context[zmq.Socket[bytes]]",
    kind: int,
    curve: Curve | None = None,
) -> "zmq.Socket[bytes]":
    """Return a ROUTER or DEALER for the control plane, with `curve` on its connections.

    A DEALER may be sent to before it is connected, and what has arrived when the peer leaves —
    its last words — can still be received.
    """
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    if kind == zmq.ROUTER:
        # Without it a message to a peer that has gone vanishes without a word.
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    if curve is not None:
        curve.apply(socket)
    return socket


def open_lane_socket(
    context: "zmq.Context[zmq.Socket[bytes]]",
    kind: int,
    curve: Curve | None = None,
) -> "zmq.Socket[bytes]":
    """Return a ROUTER or DEALER for lanes: nothing is queued for a peer that is not there."""
    socket = open_control_socket(context, kind, curve)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    return socket

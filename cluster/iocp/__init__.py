"""A completion-port session library: completions in, callbacks out.

`IocpCore` is the port, a driver moves the bytes, `Session` and `PacketSession` are
connections, `ServerService` and `ClientService` own them. Useful alone; it knows nothing of
clusters.
"""

from cluster.iocp.causes import Cause
from cluster.iocp.driver import choose_driver
from cluster.iocp.errors import (
    DriverClosedError,
    DriverUnavailableError,
    EventInFlightError,
    IocpError,
    MisuseError,
)
from cluster.iocp.iocp_core import IocpCore
from cluster.iocp.iocp_event import (
    AcceptEvent,
    ConnectEvent,
    DisconnectEvent,
    EventType,
    IocpEvent,
    RecvEvent,
    SendEvent,
)
from cluster.iocp.iocp_object import IocpObject
from cluster.iocp.listener import Listener
from cluster.iocp.net_address import NetAddress
from cluster.iocp.packet_framing import PacketFraming, iter_packets, make_packet
from cluster.iocp.packet_session import PacketSession
from cluster.iocp.recv_buffer import RecvBuffer
from cluster.iocp.send_buffer import SendBuffer
from cluster.iocp.service import (
    ClientService,
    ServerService,
    Service,
    SessionFactory,
)
from cluster.iocp.session import Session
from cluster.iocp.session_settings import SessionSettings
from cluster.iocp.session_state import SessionState
from cluster.iocp.timers import Timer

__all__ = [
    "AcceptEvent",
    "Cause",
    "ClientService",
    "ConnectEvent",
    "DisconnectEvent",
    "DriverClosedError",
    "DriverUnavailableError",
    "EventInFlightError",
    "EventType",
    "IocpCore",
    "IocpError",
    "IocpEvent",
    "IocpObject",
    "Listener",
    "MisuseError",
    "NetAddress",
    "PacketFraming",
    "PacketSession",
    "RecvBuffer",
    "RecvEvent",
    "SendBuffer",
    "SendEvent",
    "ServerService",
    "Service",
    "Session",
    "SessionFactory",
    "SessionSettings",
    "SessionState",
    "Timer",
    "choose_driver",
    "iter_packets",
    "make_packet",
]

"""A front for browsers: WebSocket clients here, one TCP connection to a node for each there.

A process of its own: what WebSockets and TLS cost is not the gateway's. Only this room imports the
library `websockets`.
"""

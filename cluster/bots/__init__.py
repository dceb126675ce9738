"""The dummy client as a load tool: many sessions against an echo, every answer checked.

Built on `cluster.iocp.ClientService`, so it is also the library's own proof on the client side.
"""

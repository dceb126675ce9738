"""The process that starts a node's gateway and workers, watches them, and ends them in order.

It runs no code of the application and opens no client socket, so that nothing that happens in a
node can take it down.
"""

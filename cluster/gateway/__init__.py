"""The gateway: the process that owns the listener, the completion port and every session.

It runs no application code and never waits for a worker.
"""

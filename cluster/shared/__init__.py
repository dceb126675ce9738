"""What gateway, worker and supervisor must agree on.

Packet header, lanes, control messages, causes, configuration, the run directory. Nothing in here
imports a process; everything in here may be imported by all of them.
"""

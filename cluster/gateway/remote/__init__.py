"""The gateway's side of workers on other machines: who is let in, and where they are heard.

Everything here has a ZeroMQ context of its own, so that nothing that strangers do to its thread
delays the workers of this machine.
"""

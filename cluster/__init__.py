"""A cluster of processes that holds many TCP sessions and runs an application behind them.

This package imports nothing, so that `cluster.iocp` stays light for those who use it alone.
Applications import `cluster.worker`.
"""

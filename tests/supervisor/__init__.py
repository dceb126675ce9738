"""Tests of `cluster.supervisor`."""

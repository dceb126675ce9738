"""Tests of `cluster.bots`."""

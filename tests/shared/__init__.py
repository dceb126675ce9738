"""Tests of `cluster.shared`."""

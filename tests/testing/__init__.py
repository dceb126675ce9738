"""Tests that mirror `cluster.testing`."""

"""Tests that mirror `cluster.worker`."""

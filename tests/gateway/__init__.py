"""Tests that mirror `cluster.gateway`."""

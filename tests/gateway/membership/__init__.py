"""Tests of cluster/gateway/membership."""

"""Seeded runs on the in-process network: whatever goes wrong, its seed brings it back."""

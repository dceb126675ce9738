"""What stands in `deploy/`: read as its users read it, and run as processes."""

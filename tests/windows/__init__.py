"""Tests that run on Windows only, and the script that runs the Windows suites under Wine."""

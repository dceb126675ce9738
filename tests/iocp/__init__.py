"""The completion-port library, one file for each of its concepts; sessions by topic."""

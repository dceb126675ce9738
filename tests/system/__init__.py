"""Real processes: `cluster up` and what it promises, from the outside."""

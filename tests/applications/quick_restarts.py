"""`cluster` whose supervisor makes shorter pauses before it tries again what has ended uselessly.

For tests with many such ends: run as `python -m tests.applications.quick_restarts up ...`. The rule
stays what it is.
"""

from cluster.supervisor import restart_policy

if __name__ == "__main__":
    # Before anything imports them.
    restart_policy.BACKOFF_FIRST_S = 0.01
    restart_policy.BACKOFF_MAX_S = 0.2

    from cluster.cli import main

    main()

"""`python -m cluster`: the same as the console script `cluster`."""

from cluster.cli import main

if __name__ == "__main__":
    main()

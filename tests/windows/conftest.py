"""On other systems there is nothing here to run."""

import sys

collect_ignore_glob = [] if sys.platform == "win32" else ["test_*.py"]

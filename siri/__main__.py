import os
import sys

# `python -m` puts the current folder first, where a file json.py would be taken for Python's own. What Python itself
# has imported by now came from there already: only the script `siri` and `python -P -m siri` are safe in any folder.
if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]

from siri.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

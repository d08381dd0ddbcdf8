"""Python runs this at the start of every process that a test starts: what pytest makes an error is one there."""

import builtins
import os
import warnings

for line in os.environ.get("SIRI_TEST_WARNINGS", "").splitlines():
    action, message, category, module, *_ = [*line.split(":"), "", "", ""]
    warnings.filterwarnings(action, message, getattr(builtins, category or "Warning"), module)

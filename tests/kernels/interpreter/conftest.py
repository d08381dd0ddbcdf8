"""These tests run the Triton kernels themselves on CPU tensors.

The interpreter is chosen when Triton is imported, so they need a process of their own: `test_kernels_interpreter.py`
starts it with TRITON_INTERPRET=1, and a plain collection leaves them out.
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]

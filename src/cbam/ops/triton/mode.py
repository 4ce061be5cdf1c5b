"""Whether the kernels run in Triton's interpreter, on the CPU; Triton decides that when it is imported."""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

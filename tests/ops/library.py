"""Skip what needs the C++ operator where nobody built it; `test_library.py` makes sure that this is no accident."""

import os

import pytest
import torch

from cbam.nn import after_norm
from cbam.ops import cpp, triton

# With CBAM_ISA the operator may round other than torch does, and a norm in front then stays outside of it.
other_bits = bool(os.environ.get("CBAM_ISA")) and not after_norm.exact(torch.float32, False, True)
needs_same_bits = pytest.mark.skipif(other_bits, reason="CBAM_ISA: the norm's last bit differs from torch's")
needs_operator = pytest.mark.skipif(not cpp.available(), reason=str(cpp.unavailable_reason()))

# Triton's kernels run on a GPU where there is one, and otherwise in Triton's interpreter (`conftest.py`).
GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_triton = pytest.mark.skipif(
    triton.unavailable_reason() is not None, reason=str(triton.unavailable_reason())
)

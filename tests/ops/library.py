"""Skip what needs the C++ operator where nobody built it; `test_library.py` makes sure that this is no accident."""

import pytest

from cbam.ops import cpp

needs_operator = pytest.mark.skipif(not cpp.available(), reason=str(cpp.obstacle()))

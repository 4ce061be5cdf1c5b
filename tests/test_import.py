"""`import cbam` brings in torch and the standard library, nothing heavier; and this check is able to fail."""

import subprocess
import sys

import pytest

HEAVY = """
numpy torchvision timm accelerate matplotlib PIL rich tyro scipy jinja2 triton torchcam yaml safetensors sklearn
pytest torch._dynamo
"""


def brought_in_beyond_torch(statement):
    """Names in HEAVY that `statement` loads and `import torch` alone does not."""
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        f"{statement}\n"
        f"print(*[m for m in {HEAVY.split()!r} if m in set(sys.modules) - before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("statement", ["import cbam", "import cbam; cbam.testing"])
def test_import_is_light(statement):
    assert brought_in_beyond_torch(statement) == []


@pytest.mark.parametrize("statement", ["import torchvision", "import cbam, torchvision.models"])
def test_the_check_can_fail(statement):
    assert "torchvision" in brought_in_beyond_torch(statement)

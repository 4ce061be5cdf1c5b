"""Check and measure the fused operator on a GPU, in one call; README.md beside this file tells what comes out.

Usage: python benchmarks/gpu/measure.py --output DIR [--quick] [--budget SECONDS]
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The code of this very tree, installed or not; and this folder as the package `gpu` instead of loose modules.
sys.path[:1] = [str(HERE.parent), str(HERE.parents[1] / "src")]

from gpu.run import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

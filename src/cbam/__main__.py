"""`python -m cbam` is `cbam`."""

import sys

from cbam.cli.main import main

sys.exit(main())

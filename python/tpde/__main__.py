"""`python -m tpde` is the command `tpde`."""

from __future__ import annotations

import sys

from tpde.cli import main

if __name__ == "__main__":
    sys.exit(main())

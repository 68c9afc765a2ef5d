"""`python -m ramet`: the command line, where no script `ramet` is on PATH."""

from __future__ import annotations

import sys

from ramet.cli.main import main

sys.exit(main())

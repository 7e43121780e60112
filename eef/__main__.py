"""``python -m eef`` is the command ``eef``."""

import sys

from eef.cli import main

sys.exit(main())

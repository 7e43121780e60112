"""``python -m eef`` is the command ``eef``."""

import sys

from eef.cli import main

if __name__ == "__main__":
    sys.exit(main())

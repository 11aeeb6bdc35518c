"""``python -m cameleer.cli`` is the command ``cameleer``."""

import sys

from cameleer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m shield` is `shield`."""

import sys

from shield.cli import main

if __name__ == "__main__":
    sys.exit(main())

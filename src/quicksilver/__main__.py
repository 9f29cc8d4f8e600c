"""`python -m quicksilver` is `quicksilver`."""

import sys

from quicksilver.cli import main

if __name__ == "__main__":
    sys.exit(main())

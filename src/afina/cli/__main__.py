"""`python -m afina.cli` is `afina`."""

import sys

from afina.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m benches`: all of them."""

import sys

from benches.report import main

if __name__ == "__main__":
    sys.exit(main())

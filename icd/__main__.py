"""Run the command line: `python -m icd --help`."""

import sys

from icd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m pyfast.cli`` is ``pyfast``."""

import sys

from pyfast.cli import main

if __name__ == "__main__":
    sys.exit(main())

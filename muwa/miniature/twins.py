"""Train models without one person: `python -m muwa.miniature.twins`."""

import sys

from muwa.miniature.retrained import main

if __name__ == "__main__":
    sys.exit(main())

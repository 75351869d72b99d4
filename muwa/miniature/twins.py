"""The former name of `python -m muwa.miniature.retrained`: retrain the miniature CLIP without one person."""

import sys

from muwa.miniature.retrained import main

if __name__ == "__main__":
    sys.exit(main())

"""The former name of `python -m muwa.miniature.retrained`: retrain the miniature CLIP without one person."""

import sys

from muwa.runtime import stopping

if __name__ == "__main__":
    stopping.leave_at_once("muwa.miniature.twins")  # during the imports below, which take seconds

from muwa.miniature.retrained import main

if __name__ == "__main__":
    said = "Finished models and the last saved state are kept in --out: type the same command again to go on."
    with stopping.one_line("muwa.miniature.twins", said):
        sys.exit(main())

"""Run one unlearning experiment. In a checkout, this is the command `muwa`, without installing it.

python launch.py                                              # the miniature: no download, no GPU
python launch.py task.identity=Edda_Everlane                  # another person
python launch.py -m task.identity=Kael_Lindqvar,Edda_Everlane # one run each, then sweep.html
python launch.py --cfg job                                    # print the config, do not run
python launch.py --help                                       # the page that says what there is
"""

import sys

from muwa.__main__ import main

if __name__ == "__main__":
    sys.exit(main())

"""Start the command line: `python -m engine`. A spawned worker loads this module too, and must not start it again."""

import os
import sys

if __name__ == "__main__":
    # Before numpy loads: its BLAS would start threads, which nothing here uses and a fork must not meet.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")

    from engine.cli.program import main

    sys.exit(main())

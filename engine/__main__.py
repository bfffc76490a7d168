"""Start the command line: `python -m engine`. A spawned worker loads this module too, and must not start it again."""

import gc
import os
import sys

if __name__ == "__main__":
    # Before numpy loads: its BLAS would start threads, which nothing here uses and a fork must not meet.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")

    gc.set_threshold(
        50_000
    )  # hundreds of modules and millions of entries make no cycles: looking for them costs a tenth

    from engine.cli.program import main

    sys.exit(main())

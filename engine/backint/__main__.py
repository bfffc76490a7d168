"""Start the agent: `python -m engine.backint`; HANA calls it through deploy/hdbbackint."""

import os
import sys

if __name__ == "__main__":
    # Before numpy loads: its BLAS would start threads, which nothing here uses and a fork must not meet.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")

    from engine.backint.program import main

    sys.exit(main(sys.argv[1:]))

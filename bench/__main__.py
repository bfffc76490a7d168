"""Run all measurements, or those that are named: `python -m bench`, `python -m bench compare index`.

Each is a program of its own with options of its own (`python -m bench.index --help`) and rewrites its own part of
docs/benchmarks.md. `--small` runs each on little data, to see that it works; then the page stays as it is.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# In the order of the page: the name of the program, and what makes it small, where that is possible.
PROGRAMS: dict[str, list[str] | None] = {
    "compare": ["--files=200", "--runs=1", "--peers"],
    "big": ["--mib=4", "--text-mib=4", "--runs=1", "--peers"],
    "walk": ["--files=200", "--runs=1"],
    "entries": ["--entries=3000", "--one=3000"],
    "index": ["--chunks=5000"],
    "rawget": ["--mib=4", "--runs=1", "--folder-only"],
    "scaling": ["--mib=4", "--runs=1", "--no-celery"],
    "scale": None,
    "due": None,
}
# What takes many minutes, or has a peer of its own: only when it is named.
NAMED = ("limits", "replicate", "bucket")


def run(name: str, more: list[str]) -> int:
    """Run one program; return its exit code."""
    print(f"--- python -m bench.{name} {' '.join(more)}", flush=True)
    begin_s = time.monotonic()
    code = subprocess.run([sys.executable, "-m", f"bench.{name}", *more], cwd=ROOT, check=False).returncode
    print(f"--- {name} ended with {code} after {time.monotonic() - begin_s:.0f} s", flush=True)
    return code


def main() -> None:
    """Run what is named, or all; end with 1 when one failed."""
    every = [*PROGRAMS, *NAMED]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(PROGRAMS)}; and not among all: {', '.join(NAMED)}"
    )
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    unknown = set(options.names) - set(every)
    if unknown:
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    with tempfile.TemporaryDirectory(prefix="bench-page-") as folder:
        aside = f"--output={Path(folder, 'benchmarks.md')}"
        codes = []
        for name in options.names or PROGRAMS:
            little = PROGRAMS.get(name)
            if not options.small:
                codes.append(run(name, []))
            elif little is not None:
                codes.append(run(name, [aside, *little]))
            else:
                print(f"--- {name} can't be small: left out", flush=True)
    sys.exit(1 if any(codes) else 0)


if __name__ == "__main__":
    main()

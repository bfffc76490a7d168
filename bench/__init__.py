"""Measurements, each beside another program or a raw limit on the same machine and data.

    make bench                                everything, after installing the peers that are missing
    make bench ARGS="compare big"             some of it
    python -m bench.peers                     install the peers that are missing (rustic takes half an hour)
    python -m bench.compare --help            one of it, with its options: fewer files, runs or peers
    python -m bench.compare --files=5000 --runs=1 --peers restic-new --output=/tmp/page.md
    python -m bench --small                   everything on little data, to see that it works

compare   a tree of small real files beside restic, borg, kopia, rustic: backups, restore, stored bytes, a second host
big       one big file, random and text, beside the same and beside zstd alone
walk      files per core and second of a backup without changes
entries   points of ten million entries: time and memory; one file out of a million
index     an index of one and ten million chunks: memory, lookups
rawget    a restore from MinIO beside merely fetching its objects
scaling   one worker and two, by the command line and through Celery
scale     a prune of a million chunks beside a backup
due       ten thousand plans that are due in one minute
limits, replicate, bucket    only when named: they take long, or have peers of their own

Each rewrites its own part of docs/benchmarks.md and its chart in docs/benchmarks/. No step that makes data safe is left
out for speed: what is written is synced, what is restored is checked against its hashes, everything is encrypted.
"""

import os

# An installed program has its modules compiled. Where nothing may be kept, every start would compile them anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

"""Measure how fast due plans become jobs on PostgreSQL: `python -m bench.due --database URL`.

Makes a database of its own beside the named one, fills it with plans that are due in the same minute, each of a source
on a host of its own, and lets one sweep, or several at once, turn them into jobs. Prints one line of JSON.
"""

import argparse
import datetime as dt
import json
import multiprocessing
import os
import time
import uuid
from urllib.parse import urlsplit, urlunsplit

NOW = dt.datetime(2026, 3, 10, 12, 0, tzinfo=dt.UTC)


def set_up(url: str) -> str:
    """Make a database for this measurement and point Django to it; return its name."""
    import psycopg

    name = f"bench_due_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    os.environ["DATABASE_URL"] = urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    return name


def fill(count: int) -> None:
    """Make an account with that many plans, all due at NOW, and one worker that serves all their hosts."""
    from django.core.management import call_command

    from jobs import presence
    from policies.models import Plan, Source
    from tests.support.people import make_account, make_policy, make_region, make_vault

    call_command("migrate", verbosity=0)
    account, region = make_account(), make_region()
    vault, policy = make_vault(account, region), make_policy(account, window_minutes=60, start_time=dt.time(2))
    values = {"account": account, "region": region, "created_at": NOW, "settings": {"roots": ["/srv"]}}
    sources = Source.objects.bulk_create(
        [Source(name=f"host{number}", host=f"host{number}", **values) for number in range(count)], batch_size=1000
    )
    bound = {"account": account, "policy": policy, "vault": vault, "next_run_at": NOW, "created_at": NOW}
    Plan.objects.bulk_create([Plan(source=one, start_minute=90, **bound) for one in sources], batch_size=1000)
    presence.seen("all", [source.queue for source in sources], now=NOW)


def sweep(start: "multiprocessing.synchronize.Event | None" = None) -> float:
    """Do what the sweep of due plans does until none is left; return the seconds."""
    from django.db import connection

    from jobs import due, presence
    from policies.models import Plan

    if start is not None:
        connection.close()
        start.wait()
    begin = time.perf_counter()
    served = presence.queues(now=NOW)
    while Plan.objects.due(NOW).exists():
        due.settle(now=NOW, served=served)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", required=True, help="postgres://user:password@host:port/name")
    parser.add_argument("--plans", type=int, default=10_000)
    parser.add_argument("--sweeps", type=int, default=1, help="processes that sweep at once")
    arguments = parser.parse_args()
    name = set_up(arguments.database)
    import django

    django.setup()
    from django.db import connections

    from jobs.models import Job, Step
    from policies.models import Plan

    try:
        fill(arguments.plans)
        connections.close_all()
        seconds = _measure(arguments.sweeps)
        figures = {
            "plans": arguments.plans,
            "sweeps": arguments.sweeps,
            "seconds": round(seconds, 2),
            "jobs": Job.objects.active().count(),
            "steps": Step.objects.count(),
            "moments": Job.objects.values("plan", "scheduled_for").distinct().count(),
            "due": Plan.objects.due(NOW).count(),
        }
        print(json.dumps(figures))
    finally:
        connections.close_all()
        import psycopg

        with psycopg.connect(arguments.database, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _measure(sweeps: int) -> float:
    if sweeps == 1:
        return sweep()
    fork = multiprocessing.get_context("fork")
    start = fork.Event()
    processes = [fork.Process(target=sweep, args=(start,)) for _ in range(sweeps)]
    for process in processes:
        process.start()
    begin = time.perf_counter()
    start.set()
    for process in processes:
        process.join()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()

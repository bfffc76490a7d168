"""Measure how fast due plans become jobs on PostgreSQL: `python -m bench.due`. Rewrites its part of the page.

Makes a database of its own beside the named one (or on a server of deploy/dev-services), fills it with plans that are
due in the same minute, each of a source on a host of its own, and lets one sweep, or several at once, turn them into
jobs. Prints one line of JSON.
"""

import argparse
import contextlib
import datetime as dt
import json
import multiprocessing
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from bench.machine import measured
from bench.page import PAGE, write_section
from tests import services

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


@contextlib.contextmanager
def server(url: str | None) -> Iterator[str]:
    """Have a PostgreSQL inside the block: the named one, or one of its own."""
    if url:
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        state = Path(name, "services")
        try:
            yield services.postgres(services.start("postgres", state)).url
        finally:
            services.stop(["postgres"], state)


def section(figures: dict[str, float]) -> str:
    """Return the section of the page."""
    return "\n".join(
        [
            "## Due plans",
            "",
            "Made by `python -m bench.due`: plans that are due in one minute, each of a source on a host of its own,",
            f"turned into jobs on PostgreSQL by {figures['sweeps']} sweep.",
            "",
            f"- {measured()}",
            "",
            "| plans | jobs made | time | goal |",
            "|---|---|---|---|",
            f"| {figures['plans']:,} | {figures['jobs']:,} | {figures['seconds']:.2f} s | within 10 s |",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", help="postgres://user:password@host:port/name")
    parser.add_argument("--plans", type=int, default=10_000)
    parser.add_argument("--sweeps", type=int, default=1, help="processes that sweep at once")
    parser.add_argument("--output", type=Path, default=PAGE)
    arguments = parser.parse_args()
    with server(arguments.database) as url:
        arguments.database = url
        figures = measure(arguments)
    print(json.dumps(figures))
    if figures["jobs"] != figures["plans"] or figures["due"]:
        raise SystemExit("some plans did not become jobs")
    write_section("due", section(figures), page=arguments.output)


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Fill a database and let the sweeps work; return the figures."""
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
        return {
            "plans": arguments.plans,
            "sweeps": arguments.sweeps,
            "seconds": round(seconds, 2),
            "jobs": Job.objects.active().count(),
            "steps": Step.objects.count(),
            "moments": Job.objects.values("plan", "scheduled_for").distinct().count(),
            "due": Plan.objects.due(NOW).count(),
        }
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

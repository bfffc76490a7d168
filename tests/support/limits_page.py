"""Write docs/limits.md: the limits of the product, read from the code that holds them.

Run `make limits` after changing one.
"""

import os
from collections.abc import Iterator
from typing import Any

from tests.support.markers import ROOT

PAGE = ROOT / "docs" / "limits.md"
OPENING = """# Limits

What the product takes at most. The figures are read from the code by `make limits`, so they are what is refused.
Limits that an operator sets, such as rates and time-outs, are in `backupsite/settings.py` with their defaults.
"""
Rows = Iterator[tuple[str, str]]


def page() -> str:
    """Return the page's text. Django must be set up."""
    parts = {
        "Names and texts": _names(),
        "Schedules and retention": _schedules(),
        "Running backups and restores": _running(),
        "Vaults and their keys": _vaults(),
        "What a vault stores": _stored(),
        "Access": _access(),
    }
    lines = [OPENING]
    for title, rows in parts.items():
        lines += [
            f"## {title}",
            "",
            "| what | limit |",
            "|---|---|",
            *(f"| {what} | {most} |" for what, most in rows),
            "",
        ]
    return "\n".join(lines)


def _names() -> Rows:
    from accounts.models import Account
    from engine.verbs.hold import REASON_MAX
    from policies.models import TAG_CHARS_MAX, TAGS_MAX, Policy, Source
    from vaults.models import Region, Vault

    for model in (Account, Region, Vault, Source, Policy):
        yield f"Name of {_article(model._meta.verbose_name)}", _characters(model, "name")
    yield "Description of a vault", _characters(Vault, "description")
    yield "Tags of a source", f"{TAGS_MAX}, each of {TAG_CHARS_MAX} characters"
    yield "Reason for a hold, in the vault itself", f"{REASON_MAX:,} characters"


def _schedules() -> Rows:
    from policies.editions import TERMS
    from policies.models import KEPT_MAX, RETENTION_DAYS_MAX, Edition, Policy, Rule
    from policies.schedule import DRAWN_START_MINUTES
    from policies.services import RULES_MAX

    yield "Rules of a policy", f"1 to {RULES_MAX}"
    yield "Periods between two runs", f"{_most(Rule, 'every'):,} hours, days, weeks, months or years"
    yield "A start that is drawn", f"within {DRAWN_START_MINUTES // 60} hours from midnight"
    yield "Retention", f"1 to {RETENTION_DAYS_MAX:,} days, or without an end"
    for edition in (Edition.ESSENTIAL, Edition.TRIAL, Edition.CLUSTER):
        terms = TERMS[edition]
        span = f"{terms.days_min}" if terms.days_min == terms.days_max else f"{terms.days_min} to {terms.days_max}"
        yield f"Retention of plans of the kind {edition.label}", f"{span} days"
    yield "Points, days, weeks, months or years that are kept", f"{KEPT_MAX:,} of each"
    yield "Days between two trial restores", f"{_most(Policy, 'drill_every_days'):,}"


def _running() -> Rows:
    from engine.point import PROBLEMS_KEPT
    from engine.sources import files, smb
    from engine.verbs.comparison import DIFFERENCES_KEPT
    from jobs.maintenance import EVERY_S_MAX, EVERY_S_MIN
    from jobs.states import ATTEMPTS_MAX
    from vaults.limits import PARALLEL_MAX, WINDOWS_MAX

    yield "Backups of a host, or of a source without one, at a time", "1"
    yield "Steps of a job that a plan may let run at once", f"{PARALLEL_MAX}, or any number"
    yield "Times of day with a speed of their own", f"{WINDOWS_MAX}"
    yield "Attempts at one step before its job fails", f"{ATTEMPTS_MAX}"
    yield "Threads that walk one tree", f"{files.WALKERS_MAX} on a host, {smb.WALKERS_MAX} on a share"
    yield "Problems that a report lists one by one; all are counted", f"{PROBLEMS_KEPT:,}"
    yield "Differences that a trial restore lists", f"{DIFFERENCES_KEPT:,}"
    yield "Time between two runs of a vault's maintenance", f"{EVERY_S_MIN} seconds to {EVERY_S_MAX // 86_400} days"


def _vaults() -> Rows:
    from engine.keyproviders.shares import MOST
    from engine.keysets import GENERATION_MAX
    from engine.locks import LOCK_DAYS_MAX
    from vaults.replication import TARGETS_MAX

    yield "Lock of an immutable vault", f"1 to {LOCK_DAYS_MAX:,} days"
    yield "Replicas of a vault", "1, in another region"
    yield "Replicas of an account in a region", f"{TARGETS_MAX}"
    yield "Parts that a recovery key is split into", f"{MOST}"
    yield "Rotations of a vault's keys", f"{GENERATION_MAX:,}"


def _stored() -> Rows:
    from engine.chunker import CHUNK_BYTES_MAX, PART_BYTES, PROFILES
    from engine.codec import RECORD_BYTES_MAX
    from engine.pack import DATA, META, TARGET_BYTES

    for profile, average in PROFILES.items():
        yield f"Chunk of the profile {profile}, on average", f"{average >> 10:,} KiB"
    yield "Largest chunk", f"{CHUNK_BYTES_MAX >> 20} MiB"
    yield "Part of a large file that one worker reads", f"{PART_BYTES >> 20} MiB"
    yield "Stored object with content, about", f"{TARGET_BYTES[DATA] >> 20} MiB"
    yield "Stored object with listings, about", f"{TARGET_BYTES[META] >> 20} MiB"
    yield "Largest record that is decoded", f"{RECORD_BYTES_MAX >> 30} GiB"


def _access() -> Rows:
    from django.conf import settings

    yield "API tokens of a user, unless the operator says otherwise", f"{settings.TOKENS_MAX}"
    yield "Life of such a token, unless the operator says otherwise", f"{settings.TOKEN_DAYS_MAX} days"
    yield "Wrong passwords before an address and a user have to wait", f"{settings.AXES_FAILURE_LIMIT}"


def _article(noun: object) -> str:
    return f"{'an' if str(noun)[0] in 'aeiou' else 'a'} {noun}"


def _characters(model: Any, field: str) -> str:
    return f"{model._meta.get_field(field).max_length} characters"


def _most(model: Any, field: str) -> int:
    """Return the largest value that the field's validators let through."""
    return min(int(one.limit_value) for one in model._meta.get_field(field).validators if one.code == "max_value")


def main() -> str:
    """Write the page."""
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    PAGE.write_text(page())
    return f"{PAGE.relative_to(ROOT)}\n"


if __name__ == "__main__":
    import sys

    sys.stdout.write(main())

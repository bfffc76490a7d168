"""The chain of the audit trail: every event gets a number and a digest over itself and all events before it.

An event is stored inside the transaction of what it tells about, without waiting for anybody. Its link is added in a
short transaction of its own right after that one was committed, under the lock of the chain's head. So no action ever
holds the head while it waits for a row, and no two actions wait for each other because of the trail. A process that
dies in between leaves an event without a link, which the next sweep adds.

digest = SHA-256(digest before, in hex ‖ newline ‖ canonical row); canonical row = JSON with sorted keys, without
blanks, other characters than ASCII escaped, moments in UTC with microseconds.
"""

import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from django.db import connection, transaction

from accounts import guards
from accounts.models import GENESIS, ChainHead, Event, Link

BATCH = 2000
# How many events before its own a writer links too.
GROUP = 50
# No transaction lasts as long as this: what an older one did not leave behind will never come.
SETTLED = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class ChainState:
    """What a verification found. `broken_at` is the number of the first line that is not what it was, `problem` how.

    Write `sequence` and `digest` down elsewhere: whoever rewrites the whole chain cannot have them come out the same.
    """

    sequence: int
    digest: str
    guarded: bool
    broken_at: int | None = None
    problem: str = ""

    @property
    def intact(self) -> bool:
        """Say whether every line is what it was when it was written."""
        return self.broken_at is None


def row_of(event: Event, sequence: int) -> dict[str, Any]:
    """Return what the digest of an event covers."""
    return {
        "sequence": sequence,
        "event": event.pk,
        "happened_at": event.happened_at.astimezone(dt.UTC).isoformat(timespec="microseconds"),
        "account_id": str(event.account_id) if event.account_id else None,
        "account_name": event.account_name,
        "user_id": event.user_id,
        "user_name": event.user_name,
        "address": event.address,
        "action": event.action,
        "outcome": event.outcome,
        "object_type": event.object_type,
        "object_id": event.object_id,
        "object_name": event.object_name,
        "detail": event.detail,
    }


def canonical(row: dict[str, Any]) -> str:
    """Return the text of a row that is digested."""
    return json.dumps(row, sort_keys=True, separators=(",", ":"))


def digest_of(before: str, row: dict[str, Any]) -> str:
    """Return the digest of a row behind the digest before it."""
    return hashlib.sha256(f"{before}\n{canonical(row)}".encode()).hexdigest()


def seal(event_ids: Iterable[int]) -> int:
    """Link the events, and others of the same moment; return how many. Safe to call twice.

    Whoever gets the lock links what the others wait for too: under load most find nothing left to do.
    """
    wanted = list(event_ids)
    if _are_linked(wanted):
        return 0
    with transaction.atomic():
        head = _head()
        if _are_linked(wanted):
            return 0  # somebody did it while this waited for the lock
        since = min(wanted) - GROUP
        linked = set(Link.objects.filter(event_id__gt=since).values_list("event_id", flat=True))
        stored = Event.objects.filter(pk__gt=since).values_list("pk", flat=True)
        return _link(head, Event.objects.filter(pk__in=set(stored) - linked))


def _are_linked(event_ids: list[int]) -> bool:
    return Link.objects.filter(event_id__in=event_ids).count() == len(event_ids)


def sweep(*, now: dt.datetime) -> int:
    """Link what a process that died left without a link; return how many."""
    with transaction.atomic():
        head = _head()
        linked = _link(head, Event.objects.filter(pk__gt=head.swept_to, link=None))
        settled = Event.objects.filter(pk__gt=head.swept_to, happened_at__lt=now - SETTLED).order_by("-pk").first()
        if settled is not None:
            head.swept_to = settled.pk
            head.save(update_fields=["swept_to"])
        return linked


def _head() -> ChainHead:
    """Return the chain's head, locked until the transaction ends."""
    head = ChainHead.objects.select_for_update().filter(pk=1).first()
    if head is None:
        ChainHead.objects.get_or_create(pk=1)
        head = ChainHead.objects.select_for_update().get(pk=1)
    return head


def _link(head: ChainHead, events: Any) -> int:
    links = []
    for event in events.order_by("pk"):
        head.sequence += 1
        head.digest = digest_of(head.digest, row_of(event, head.sequence))
        links.append(Link(sequence=head.sequence, event_id=event.pk, digest=head.digest))
    if links:
        Link.objects.bulk_create(links)
        head.save(update_fields=["sequence", "digest"])
    return len(links)


def state() -> ChainState:
    """Return where the chain ends, without looking at its lines."""
    head = ChainHead.objects.filter(pk=1).first() or ChainHead()
    return ChainState(head.sequence, head.digest, guards.stand(connection))


def verify_chain() -> ChainState:
    """Derive every digest anew, oldest first, and stop at the first line that was altered, removed or put in.

    An event that was stored a moment ago and has no link yet is no finding: the sweep links it.
    """
    head = ChainHead.objects.filter(pk=1).first() or ChainHead()
    guarded = guards.stand(connection)
    digest, expected = GENESIS, 0
    for link in _links(up_to=head.sequence):
        expected += 1
        problem = _problem(link, expected, digest)
        if problem:
            return ChainState(head.sequence, head.digest, guarded, expected, problem)
        digest = link.digest
    if (expected, digest) != (head.sequence, head.digest):
        problem = f"the chain ends at line {expected}, and its head says {head.sequence}: lines at the end are gone"
        return ChainState(head.sequence, head.digest, guarded, expected + 1, problem)
    if stray := _stray(head):
        return ChainState(head.sequence, head.digest, guarded, head.sequence + 1, stray)
    return ChainState(head.sequence, head.digest, guarded)


def _problem(link: Link, expected: int, before: str) -> str:
    if link.sequence != expected:
        return f"line {expected} is gone"
    event = getattr(link, "found", None)
    if event is None:
        return f"the event of line {expected} is gone"
    if digest_of(before, row_of(event, expected)) != link.digest:
        return f"line {expected} is not what it was when it was written"
    return ""


def _stray(head: ChainHead) -> str:
    """Return what stands outside the chain and cannot have been left by a process that died."""
    if Link.objects.filter(sequence__gt=head.sequence).exists() and not _moved_on(head):
        return "the chain has lines behind its head"
    old = Event.objects.filter(pk__lte=head.swept_to, link=None).order_by("pk").first()
    return f"event {old.pk} stands outside the chain: its line was removed, or it was put in" if old else ""


def _moved_on(head: ChainHead) -> bool:
    """Say whether the head moved while the lines were looked at."""
    return ChainHead.objects.filter(pk=1, sequence__gt=head.sequence).exists()


def _links(*, up_to: int) -> Iterator[Link]:
    """Yield links in order, each with its event as `found` if that is there; memory: one batch."""
    at = 0
    while True:
        links = list(Link.objects.filter(sequence__gt=at, sequence__lte=up_to).order_by("sequence")[:BATCH])
        if not links:
            return
        found = Event.objects.in_bulk([link.event_id for link in links])
        for link in links:
            link.found = found.get(link.event_id)  # type: ignore[attr-defined]  # the event, fetched for the batch
            yield link
        at = links[-1].sequence


def lines(events: Any) -> Iterator[dict[str, Any]]:
    """Yield the linked ones of `events`, oldest first: `row`, `digest`, and `previous`, the digest before it."""
    at = 0
    while True:
        batch = list(events.filter(link__sequence__gt=at).select_related("link").order_by("link__sequence")[:BATCH])
        if not batch:
            return
        numbers = [event.link.sequence - 1 for event in batch]
        before = dict(Link.objects.filter(sequence__in=numbers).values_list("sequence", "digest"))
        for event in batch:
            sequence = event.link.sequence
            previous = before.get(sequence - 1, GENESIS if sequence == 1 else "")
            yield {"digest": event.link.digest, "previous": previous, "row": row_of(event, sequence)}
        at = batch[-1].link.sequence

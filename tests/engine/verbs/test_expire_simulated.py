"""Months of nightly backups and expiries under a simulated clock, with everything that goes wrong in months."""

import datetime as dt
import random

import pytest

from engine.errors import ExpiryRefused
from engine.retention import Rules, Version, judge
from tests.support.expiry import expired, made_point, text, visible
from tests.support.vaults import START, Bench

DAY = dt.timedelta(days=1)
GOOD = Rules(days=7, weekly=5, monthly=12, at_least_one=True, zone="Europe/Berlin")
MIDNIGHT = START.replace(hour=0, minute=0, second=0)


class Nights:
    """A vault that gets a backup at two and an expiry at three each night, and all versions there ever were."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.ever: list[Version] = []
        self.tonight = MIDNIGHT

    def back_up(self) -> None:
        self.tonight += DAY
        name = made_point(self.bench, ended_at=self.tonight.replace(hour=2))
        self.ever.append(Version(point=name.point, completed_at=self.tonight.replace(hour=2)))

    def expire(self, rules: Rules = GOOD, *, off: dt.timedelta = dt.timedelta(0), confirmed: bool = False) -> list[str]:
        """Expire with a clock that is `off`; return what went."""
        return expired(self.bench, default=rules, now=self.three + off, confirmed=confirmed).expired

    @property
    def three(self) -> dt.datetime:
        return self.tonight.replace(hour=3)

    def wanted(self) -> set[str]:
        """Return what the rules keep of all there ever was."""
        return {f"home/{verdict.point}" for verdict in judge(self.ever, GOOD, self.three) if verdict.keep}


@pytest.fixture
def nights(bench: Bench) -> Nights:
    return Nights(bench)


@pytest.mark.invariant(28)
def test_a_wrong_policy_and_a_wrong_clock_lose_nothing_in_months_and_the_right_ones_go_on(nights: Nights):
    for night in range(120):
        nights.back_up()
        before = visible(nights.bench)
        if 40 <= night < 50:  # somebody set the days to one, and forgot the other rules
            with pytest.raises(ExpiryRefused, match="more than a fifth"):
                nights.expire(Rules(days=1))
        elif night in (60, 61):
            with pytest.raises(ExpiryRefused, match="the clock says"):
                nights.expire(off=DAY * (365 if night == 60 else -365))
        elif 50 <= night < 55 or night == 62:  # after a break the clock is odd as well, until somebody looks
            with pytest.raises(ExpiryRefused, match="the clock says"):
                nights.expire()
            if night in (54, 62):
                nights.expire(confirmed=True)
                assert visible(nights.bench) == nights.wanted()
            continue
        else:
            nights.expire()
            assert visible(nights.bench) == nights.wanted()
            continue
        assert visible(nights.bench) == before
    assert 12 < len(visible(nights.bench)) < 25


@pytest.mark.invariant(28)
@pytest.mark.invariant(7)
@pytest.mark.parametrize("seed", range(4))
def test_whatever_clock_and_policy_a_run_has_it_takes_no_more_than_a_fifth_and_follows_no_jump(
    nights: Nights, seed: int
):
    chance = random.Random(seed)
    clocks = [dt.timedelta(0)] * 4 + [DAY * 2, DAY * 400, -DAY / 12, -DAY * 4000, dt.timedelta(minutes=30)]
    policies = [GOOD] * 3 + [Rules(days=1), Rules(days=0, last=1), Rules(days=3), Rules(days=0, weekly=1)]
    taken = refused = 0
    nights.back_up()
    nights.expire()
    last = nights.three
    for _ in range(60):
        nights.back_up()
        before = visible(nights.bench)
        off, rules = chance.choice(clocks), chance.choice(policies)
        now = nights.three + off
        try:
            gone = set(nights.expire(rules, off=off))
            assert -dt.timedelta(hours=1) <= now - last <= dt.timedelta(hours=25)
            last = now
        except ExpiryRefused:
            gone = set()
            refused += 1
        after = visible(nights.bench)
        assert before - after == gone
        assert len(gone) <= max(1, len(before) // 5)
        if not gone and chance.random() < 0.3:  # a person looks, and sets clock and policy right
            nights.expire(confirmed=True)
            last = nights.three
        assert text(nights.bench.open().points()[-1]) in after
        taken += len(gone)
    assert taken > 0
    assert refused > 5

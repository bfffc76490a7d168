"""Kill -9 at random moments, over and over, beside everything that changes a vault (tests/support/kills.py)."""

from pathlib import Path

import pytest

from tests.support.kills import torment


@pytest.mark.slow
@pytest.mark.scenario
@pytest.mark.timeout(900)
@pytest.mark.invariant(1, 2, 6)
def test_a_vault_outlives_a_hundred_kills_and_stopped_processes_that_come_back(
    tmp_path: Path, pytestconfig: pytest.Config
):
    kills = int(pytestconfig.getoption("--kills"))
    tally = torment(tmp_path, kills=kills, seed=kills)
    assert tally.kills == kills
    assert tally.stops > 0
    for verb in ("backup", "restore", "expire", "prune", "compact"):
        assert tally.ends[f"{verb} killed"] > 0
        assert tally.ends[f"{verb} ok"] > 0

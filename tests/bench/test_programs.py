"""Each measurement still runs: on little data, without peers, and without touching the page."""

import subprocess
import sys

import pytest

from bench.__main__ import PROGRAMS, ROOT
from bench.page import PAGE


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, small in PROGRAMS.items() if small is not None])
def test_a_measurement_runs_on_little_data_and_leaves_the_page_alone(name: str):
    before = PAGE.read_text()
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--small", name], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "| goal |" in done.stdout
    assert PAGE.read_text() == before


def test_a_measurement_that_does_not_exist_is_refused_by_name():
    done = subprocess.run(
        [sys.executable, "-m", "bench", "speed"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no such measurement: speed; there are compare" in done.stderr

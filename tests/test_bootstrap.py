"""deploy/bootstrap makes the environment, or says in one line what is missing and what to do."""

import shutil
import subprocess
from pathlib import Path

import pytest

BOOTSTRAP = Path(__file__).parent.parent / "deploy" / "bootstrap"
CANNOT_MAKE_ENVIRONMENTS = """#!/bin/sh
case "$*" in
    "-c import sys; print"*) echo 3.11 ;;
    -c*) exit 0 ;;
    --version) echo Python 3.11.2 ;;
    *) mkdir -p .venv/bin; exit 1 ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the script alone, on a machine with nothing but the listed programs."""
    (tmp_path / "deploy").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copy(BOOTSTRAP, tmp_path / "deploy")
    for program in ("dirname", "rm", "mkdir"):
        (tmp_path / "bin" / program).symlink_to(shutil.which(program) or "")
    return tmp_path


def give(checkout: Path, name: str, script: str) -> None:
    path = checkout / "bin" / name
    path.write_text(script)
    path.chmod(0o755)


def run(checkout: Path) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", str(checkout / "deploy" / "bootstrap"), "requirements.txt"]
    return subprocess.run(command, env={"PATH": str(checkout / "bin")}, capture_output=True, text=True, check=False)


def test_without_python_it_says_which_one_to_install(checkout):
    done = run(checkout)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert "apt-get install python3 python3-venv" in done.stderr


def test_an_old_python_does_not_count(checkout):
    give(checkout, "python3", "#!/bin/sh\nexit 1\n")
    done = run(checkout)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr


def test_without_the_venv_module_it_names_the_package_and_leaves_nothing_behind(checkout):
    give(checkout, "python3", CANNOT_MAKE_ENVIRONMENTS)
    done = run(checkout)
    assert done.returncode == 1
    assert "apt-get install python3.11-venv" in done.stderr
    assert not (checkout / ".venv").exists()

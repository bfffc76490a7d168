"""The demo: from nothing to a proven backup, again and again."""

import os

import pytest
from django.core.management import CommandError, call_command

from accounts.models import User
from backupsite.comparison import compare
from jobs.models import Job
from jobs.states import JobState
from policies.models import Plan
from tests.support.control import write_tree
from tests.support.people import T0
from vaults.models import RecoveryPoint, Vault

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def own_folder(settings, tmp_path):
    settings.VAR = tmp_path / "var"
    settings.VAR.mkdir()
    settings.KEYRING_FILE = settings.VAR / "service.key"
    settings.CACHE_DIR = settings.VAR / "cache"


def test_the_demo_proves_its_backup_and_tells_secrets_once(tmp_path, capsys):
    folder = write_tree(tmp_path / "files")
    call_command("demo", folder=str(folder))
    first = capsys.readouterr().out
    assert "Backup verified" in first
    assert "BSRK-" in first
    assert "admin / " in first
    call_command("demo", folder=str(folder))
    second = capsys.readouterr().out
    assert "Backup verified" in second
    assert "BSRK-" not in second
    assert "admin / " not in second
    assert (Plan.objects.count(), Vault.objects.count(), User.objects.count()) == (1, 1, 1)
    assert RecoveryPoint.objects.count() == 2
    assert set(Job.objects.values_list("state", flat=True)) == {JobState.COMPLETE}
    assert not list((tmp_path / "var").glob("restored-*"))


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CommandError, match="does not exist"):
        call_command("demo", folder=str(tmp_path / "no"))


@pytest.mark.parametrize("damage", ["content", "missing", "mode", "time", "kind"])
def test_the_comparison_sees_every_kind_of_difference(tmp_path, damage):
    one, two = write_tree(tmp_path / "one"), write_tree(tmp_path / "two")
    for path in one.rglob("*"):
        twin = two / path.relative_to(one)
        stat = path.stat()
        os.utime(twin, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    since = T0.replace(year=2100)
    os.utime(two, ns=(one.stat().st_mtime_ns, one.stat().st_mtime_ns))
    assert compare(one, two, since=since).equal
    victim = two / "notes.txt"
    stat = (one / "notes.txt").stat()
    if damage == "content":
        victim.write_bytes(b"HELLO\n")
        os.utime(victim, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    elif damage == "missing":
        before = compare(one, two, since=since).entries
        victim.unlink()
        assert compare(one, two, since=since).entries == before - 1
        return
    elif damage == "mode":
        victim.chmod(0o600)
    elif damage == "time":
        os.utime(victim, ns=(1, 1))
    else:
        victim.unlink()
        victim.symlink_to("x")
    assert any("notes.txt" in line for line in compare(one, two, since=since).differences)

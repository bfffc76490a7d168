"""The command that makes the catalogue again from the vaults."""

import pytest
from django.core.management import CommandError, call_command

from accounts.services import SERVICE
from jobs import local, services
from tests.support.control import Clock, Site, make_site
from vaults.models import RecoveryPoint

pytestmark = pytest.mark.django_db


@pytest.fixture
def site(tmp_path) -> Site:
    site = make_site(tmp_path)
    clock = Clock()
    local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    return site


def test_lost_rows_come_back_and_a_second_run_changes_nothing(site, capsys):
    RecoveryPoint.objects.all().delete()
    call_command("rebuild_catalogue")
    assert "1 points, 1 added, 0 gone, 0 damaged" in capsys.readouterr().out
    call_command("rebuild_catalogue", site.vault.name)
    assert "1 points, 0 added, 0 gone, 0 damaged" in capsys.readouterr().out
    assert RecoveryPoint.objects.count() == 1


def test_a_damaged_point_keeps_its_row_and_is_reported(site, tmp_path, capsys):
    (root,) = (tmp_path / "store" / site.vault.prefix / "points").rglob("root")
    root.write_bytes(root.read_bytes()[:-1])
    with pytest.raises(CommandError, match="could not be read"):
        call_command("rebuild_catalogue")
    assert "1 damaged" in capsys.readouterr().out
    assert RecoveryPoint.objects.count() == 1


def test_a_vault_that_is_not_there_is_refused(site):
    with pytest.raises(CommandError, match="no vault elsewhere"):
        call_command("rebuild_catalogue", "elsewhere")


def test_an_unreachable_vault_does_not_stop_the_others(site, tmp_path, capsys):
    (tmp_path / "store").rename(tmp_path / "away")
    with pytest.raises(CommandError):
        call_command("rebuild_catalogue")
    assert site.vault.name in capsys.readouterr().err
    assert RecoveryPoint.objects.count() == 1

"""The points as HANA sees them: the vault says what is there, a file of the host only what roots once told."""

from pathlib import Path

import pytest

from engine.backint.catalogue import Catalogue
from engine.errors import IntegrityError
from engine.ids import new_ulid
from engine.point import point_key
from engine.progress import Silent
from engine.sources.backint import BackintSource
from engine.storage.faulty import Faulty
from engine.verbs import backup
from tests.support.expiry import expired
from tests.support.runs import backed_up
from tests.support.vaults import Bench, flip, write_files

SERIES = "hana-hdb-systemdb"


def saved(bench: Bench, path: Path, data: bytes = b"content") -> str:
    """Back an object up as the agent does; return its id."""
    path.write_bytes(data)
    source = BackintSource(name=str(path), host="host", database="SYSTEMDB@HDB", is_pipe=False)
    job = backup.BackupJob(session=new_ulid(bench.clock()), series=SERIES, source=source, started_at=bench.clock())
    vault, silent = bench.open(), Silent()
    results = [backup.work(vault, job, unit, silent) for unit in backup.plan(vault, job, silent, now=bench.clock())]
    return backup.finish(vault, job, results, silent, clock=bench.clock).point


def shown(bench: Bench, cache: Path, name: str = "") -> list[tuple[str, str]]:
    found = Catalogue(bench.open(), SERIES, cache).newest_first(name)
    return [(one.ebid, one.known.name) for one in found]


def test_points_are_shown_newest_first_by_the_names_that_hana_gave(tmp_path: Path) -> None:
    bench = Bench()
    a, b = str(tmp_path / "a"), str(tmp_path / "b c")
    ids = [saved(bench, Path(path)) for path in (a, b, a)]
    assert shown(bench, tmp_path / "cache") == [(ids[2], a), (ids[1], b), (ids[0], a)]
    assert shown(bench, tmp_path / "cache", a) == [(ids[2], a), (ids[0], a)]
    found = Catalogue(bench.open(), SERIES, tmp_path / "cache").find(ids[1])
    assert found is not None
    assert (found.known.name, found.known.is_pipe) == (b, False)
    assert found.timestamp.startswith("2031-05-06T")


def test_what_is_remembered_is_not_read_again_and_what_went_is_not_shown(tmp_path: Path) -> None:
    bench = Bench()
    ids = [saved(bench, tmp_path / "a") for _ in range(5)]
    cache = tmp_path / "cache"
    shown(bench, cache)
    faulty = Faulty(bench.storage)
    assert [ebid for ebid, _ in shown(bench.over(faulty), cache)] == ids[::-1]
    assert not [call for call in faulty.calls if call.verb == "get" and call.key.endswith("/root")]
    expired(bench, points=(f"{SERIES}/{ids[4]}",), confirmed=True)
    assert [ebid for ebid, _ in shown(bench, cache)] == ids[3::-1]
    assert Catalogue(bench.open(), SERIES, cache).find(ids[4]) is None


@pytest.mark.parametrize("rot", [b"", b"not msgpack", b"\x81\xa1a\x90"])
def test_a_damaged_memory_is_made_again(tmp_path: Path, rot: bytes) -> None:
    bench = Bench()
    ebid = saved(bench, tmp_path / "a")
    shown(bench, tmp_path / "cache")
    (file,) = (tmp_path / "cache").rglob("backint-*")
    file.write_bytes(rot)
    assert shown(bench, tmp_path / "cache") == [(ebid, str(tmp_path / "a"))]


def test_without_a_place_to_remember_everything_is_read_again(tmp_path: Path) -> None:
    bench = Bench()
    ebid = saved(bench, tmp_path / "a")
    (tmp_path / "file").touch()
    assert shown(bench, tmp_path / "file") == [(ebid, str(tmp_path / "a"))]


def test_a_damaged_point_is_told_and_does_not_hide_the_others(tmp_path: Path) -> None:
    bench = Bench()
    whole, broken = saved(bench, tmp_path / "a"), saved(bench, tmp_path / "a")
    flip(bench, point_key(SERIES, broken, "root"), -1)
    catalogue = Catalogue(bench.open(), SERIES, tmp_path / "cache")
    assert [one.ebid for one in catalogue.newest_first()] == [whole]
    assert broken in catalogue.damaged
    with pytest.raises(IntegrityError):
        catalogue.find(broken)


def test_another_kind_of_point_in_the_series_is_no_backup_of_hana(tmp_path: Path) -> None:
    bench = Bench()
    outcome = backed_up(bench, write_files(tmp_path / "files", {"a": b"a"}), series=SERIES)
    catalogue = Catalogue(bench.open(), SERIES, tmp_path / "cache")
    assert catalogue.newest_first() == []
    assert "no backup of SAP HANA" in catalogue.damaged[outcome.point]


@pytest.mark.parametrize("ebid", ["", "../..", "A", "nothing", "a/b"])
def test_an_id_that_is_none_is_not_found(tmp_path: Path, ebid: str) -> None:
    assert Catalogue(Bench().open(), SERIES, tmp_path / "cache").find(ebid) is None

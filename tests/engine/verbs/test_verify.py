"""Verify finds what is wrong, says what it affects, and never stops at the first damage."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.codec import Purpose, seal, unseal
from engine.errors import Canceled, FormatError, PointMissing
from engine.ids import digest_name, new_ulid, pack_key
from engine.index import encode_segment
from engine.listing import extents_group, names_group, statics_group, volatile_group
from engine.pack import META, PackWriter
from engine.point import Body, Commit, PackRef, encode_commit, encode_root, point_key
from engine.progress import Silent
from engine.session import Session
from engine.storage import Memory
from engine.verbs import verify
from engine.verbs.inspect import scrub
from tests.support.vaults import Bench, contents, flip, on_disk, replace, verified, write_files

LEVELS = ("inventory", "structure", "footers", "scrub", "content")
GROUPS = (names_group, statics_group, volatile_group, extents_group)
READING = ("structure", "footers", "content")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "a/small.txt": b"small and dull " * 50,
        "a/other.txt": b"another",
        "empty": b"",
        "big": os.urandom(1_500_000),
    }
    return write_files(tmp_path / "home", files)


@pytest.fixture
def filled(bench: Bench, folder: Path) -> Bench:
    """A vault with two points that share a data pack."""
    bench.back_up(folder)
    (folder / "later.txt").write_bytes(b"later")
    bench.back_up(folder)
    return bench


def keys_of(bench: Bench, prefix: str) -> list[str]:
    return [stored.key for stored in bench.storage.scan(prefix)]


def biggest_pack(bench: Bench) -> str:
    return max(bench.storage.scan("packs/"), key=lambda stored: stored.size).key


@pytest.mark.parametrize("level", LEVELS)
def test_a_whole_vault_is_complete_at_every_level(filled: Bench, level: verify.Level):
    outcome = verified(filled, level)
    assert (outcome.state, outcome.findings, outcome.census.points) == ("complete", [], 2)
    assert outcome.census.unreferenced == outcome.census.unknown == outcome.census.unfinished == 0


def test_the_session_is_opened_before_anything_is_read_and_closed_as_done(filled: Bench):
    assert isinstance(filled.storage, Memory)
    filled.storage.log.clear()
    verified(filled, "content")
    calls = [(call.verb, call.key) for call in filled.storage.log]
    opened = next(i for i, (verb, key) in enumerate(calls) if verb == "put" and key.endswith("/open"))
    assert not [key for verb, key in calls[:opened] if key.startswith(("points/", "packs/", "meta/", "index/"))]
    closed = calls[-1]
    assert closed[0] == "put"
    assert closed[1].endswith("/closed")
    assert b'"done"' in filled.storage.get(closed[1])


@pytest.mark.parametrize("level", LEVELS)
def test_a_missing_pack_is_found_at_every_level_and_names_the_points(filled: Bench, level: verify.Level):
    key = biggest_pack(filled)
    filled.storage.delete([key])
    outcome = verified(filled, level)
    finding = next(f for f in outcome.findings if f.object == key)
    assert outcome.state == "failed"
    assert finding.damage == "missing"
    assert len(finding.points) == 2
    assert outcome.lost == sorted(finding.points)
    if level in READING:
        assert finding.files == 3  # the empty file needs no pack
        assert any(path.endswith(b"/big") for path in finding.paths)


def test_a_pack_cut_short_is_found_by_the_inventory(filled: Bench):
    key = biggest_pack(filled)
    replace(filled, key, filled.storage.get(key)[:-65536])
    (finding,) = verified(filled, "inventory").findings
    assert (finding.object, finding.damage) == (key, "size")


@pytest.mark.parametrize("part", ["root", "commit"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_damaged_root_or_commit_is_found_and_the_other_points_are_still_checked(
    filled: Bench, level: verify.Level, part: str
):
    key = next(key for key in keys_of(filled, "points/") if key.endswith(part))
    flip(filled, key, 40)
    outcome = verified(filled, level)
    (finding,) = outcome.findings
    assert (finding.object, finding.damage, len(finding.points)) == (key, "point", 1)
    assert outcome.census.points == 2


def test_a_commit_without_root_is_damage_and_a_root_without_commit_is_only_unfinished(filled: Bench):
    first, second = sorted({key.rpartition("/")[0] for key in keys_of(filled, "points/")})
    filled.storage.delete([f"{first}/root", f"{second}/commit"])
    outcome = verified(filled, "inventory")
    assert [(f.object, f.damage) for f in outcome.findings] == [(f"{first}/root", "point")]
    assert outcome.census.unfinished == 1


def test_objects_that_no_point_needs_are_counted_and_are_no_damage(filled: Bench):
    point = keys_of(filled, "points/")[-1].rpartition("/")[0]
    filled.storage.delete([f"{point}/commit", f"{point}/root"])
    filled.storage.put("notes.txt", b"a stranger's")
    outcome = verified(filled, "content")
    assert outcome.state == "complete"
    assert outcome.census.unreferenced > 0
    assert outcome.census.unknown == 1


def test_the_footers_level_reads_both_ends_of_every_pack_and_the_content_level_every_slot(filled: Bench):
    key = biggest_pack(filled)
    flip(filled, key, 200)
    assert verified(filled, "footers").state == "complete"
    (finding,) = verified(filled, "content").findings
    assert (finding.object, finding.damage) == (key, "damaged")
    assert finding.files == len(finding.paths) >= 1
    flip(filled, key, 200)
    flip(filled, key, len(filled.storage.get(key)) - 30)
    assert [f.object for f in verified(filled, "footers").findings] == [key]


def test_a_damaged_footer_loses_no_file_as_long_as_the_index_knows_its_chunks(filled: Bench, folder: Path):
    key = biggest_pack(filled)
    flip(filled, key, len(filled.storage.get(key)) - 30)
    (finding,) = verified(filled, "content").findings
    assert finding.files == 3
    vault = filled.open()
    assert contents(vault, vault.find("latest"), below=folder) == on_disk(folder)


@pytest.mark.parametrize("level", READING)
def test_a_damaged_listing_names_the_points_and_counts_the_files(filled: Bench, level: verify.Level):
    for key in keys_of(filled, "meta/"):
        flip(filled, key, 300)
    outcome = verified(filled, level)
    listings = [f for f in outcome.findings if f.damage == "listing"]
    assert {point for f in listings for point in f.points} == set(outcome.lost)
    assert len(outcome.lost) == 2
    assert sum(f.files for f in listings) == 4 + 5


def test_a_deleted_index_is_found_by_structure_and_costs_no_point(filled: Bench):
    filled.storage.delete(keys_of(filled, "index/"))
    outcome = verified(filled, "structure")
    assert outcome.state == "failed"
    assert {f.damage for f in outcome.findings} == {"index"}
    assert outcome.lost == []
    assert "rebuild" in outcome.findings[0].advice


def test_a_damaged_segment_is_found_behind_a_whole_copy_in_the_cache(cached_bench: Bench, folder: Path):
    cached_bench.back_up(folder)
    verified(cached_bench, "structure")
    key = keys_of(cached_bench, "index/")[0]
    flip(cached_bench, key, 100)
    (finding,) = verified(cached_bench, "structure").findings
    assert (finding.object, finding.damage) == (key, "index")


def test_a_segment_that_lies_about_a_pack_is_found_by_footers(filled: Bench):
    vault = filled.open()
    segment = vault.index.segments[0]
    plain = bytearray(plain_segment(filled, segment.name))
    plain[-1 - 2 * segment.rows] ^= 1  # the length of one chunk
    data = seal(vault.keys, Purpose.SEGMENT, bytes(plain), context=b"index")
    filled.storage.put(f"index/0/{digest_name(data)}", data)
    outcome = verified(filled, "footers")
    assert [f.damage for f in outcome.findings if f.object.endswith(digest_name(data))] == ["contradiction"]


def plain_segment(bench: Bench, name: str) -> bytes:
    return unseal(bench.open().keys, Purpose.SEGMENT, bench.storage.get(f"index/0/{name}"), context=b"index")


def test_scrub_reads_objects_that_no_point_needs_too(filled: Bench):
    stray = os.urandom(65536)
    filled.storage.put(f"packs/00/{digest_name(stray)}", stray)
    assert verified(filled, "scrub").state == "complete"
    flip(filled, f"packs/00/{digest_name(stray)}", 7)
    (finding,) = verified(filled, "scrub").findings
    assert finding.points == []


@pytest.mark.invariant(24)
def test_scrubbing_needs_the_bucket_alone(filled: Bench):
    key = biggest_pack(filled)
    flip(filled, key, 12345)
    objects = [key for unit in verify.scrub_units(filled.storage) for key, _ in unit.objects]
    assert {key.split("/")[0] for key in objects} == {"packs", "meta", "index", "keys"}
    found = [scrub(filled.storage, key) for key in objects]
    assert [f.object for f in found if f is not None] == [key]


def test_a_damaged_note_of_a_prune_is_found_and_does_not_stop_the_verification(filled: Bench):
    filled.storage.put("prune/01/condemned", b'{"packs":[]}\nforged')
    assert verified(filled, "content").findings[0].damage == "control"
    assert [f.object for f in verified(filled, "structure").findings] == ["prune/01/condemned"]


@pytest.mark.parametrize(
    "key", ["moves/r/move", "damaged/x", "holds/home/x/y", "expiry/x", "locks/9999/x", "sessions/x/open"]
)
def test_a_forged_note_of_any_kind_is_found(filled: Bench, key: str):
    filled.storage.put(key, b"{}\nforged")
    found = verified(filled, "structure").findings
    assert (key, "control") in {(finding.object, finding.damage) for finding in found}


def test_all_damage_is_reported_at_once(filled: Bench):
    damaged = {biggest_pack(filled), keys_of(filled, "index/")[0], keys_of(filled, "meta/")[0]}
    for key in damaged:
        flip(filled, key, 150)
    found = {finding.object for finding in verified(filled, "scrub").findings}
    assert found == damaged
    assert damaged - {keys_of(filled, "meta/")[0]} <= {
        finding.object for finding in verified(filled, "content").findings
    }


def test_one_point_can_be_verified_alone(filled: Bench):
    first, second = [name.point for name in filled.open().points()]
    vault = filled.open()
    names = vault.points()
    own = {p.name for p in vault.root(names[1]).packs} - {p.name for p in vault.root(names[0]).packs if p.kind == META}
    only_second = next(p for p in vault.root(names[1]).packs if p.kind == META and p.name in own)
    filled.storage.delete([f"meta/{only_second.name[:2]}/{only_second.name}"])
    assert verified(filled, "content", points=(first,)).state == "complete"
    assert verified(filled, "content", points=(second,)).state == "failed"


def test_an_unknown_point_or_level_is_refused(filled: Bench):
    with pytest.raises(PointMissing):
        verified(filled, "inventory", points=("zz",))
    with pytest.raises(ValueError, match="no level"):
        verified(filled, "everything")  # type: ignore[arg-type] # that is the point


def test_what_a_newer_program_wrote_is_refused_and_not_called_damage(filled: Bench):
    vault = filled.open()
    plain = bytearray(plain_segment(filled, vault.index.segments[0].name))
    plain[4] = 2
    data = seal(vault.keys, Purpose.SEGMENT, bytes(plain), context=b"index")
    filled.storage.put(f"index/0/{digest_name(data)}", data)
    with pytest.raises(FormatError, match="format 2"):
        verified(filled, "structure")
    closed = [key for key in keys_of(filled, "sessions/") if key.endswith("/closed")]
    assert b'"aborted"' in filled.storage.get(closed[-1])


def test_a_prune_waits_for_a_verification(filled: Bench):
    job = verify.VerifyJob(session=new_ulid(filled.clock()), level="content", started_at=filled.clock())
    units = verify.plan(filled.open(), job, Silent(), now=filled.clock())
    next(units)
    Session.join(filled.storage, filled.open().keys, job.session)  # raises unless it is open


def rewrite(bench: Bench, edit: Callable[[Body, list[PackRef]], object]) -> None:
    """Change the newest root behind its seal and commit it again, as a faulty program would."""
    vault = bench.open()
    name = vault.find("latest")
    root = vault.root(name)
    edit(root.body, root.packs)
    data = encode_root(vault.keys, root.body, root.packs)
    replace(bench, point_key(*name, "root"), data)
    commit = Commit(name.point, name.series, root.body.session, digest_name(data), bench.clock())
    replace(bench, point_key(*name, "commit"), encode_commit(vault.keys, commit))


def test_a_block_that_does_not_name_all_its_packs_is_found(filled: Bench):
    def edit(body: Body, packs: list[PackRef]) -> None:
        body.blocks[0].packs = [number for number in body.blocks[0].packs if packs[number].kind == META]

    rewrite(filled, edit)
    (finding,) = verified(filled, "structure").findings
    assert finding.damage == "listing"
    assert "none of the packs" in finding.detail
    assert finding.files == 4


def test_a_pack_that_the_index_knows_but_the_root_does_not_name_is_not_enough(filled: Bench):
    def edit(body: Body, packs: list[PackRef]) -> None:
        packs[:] = [pack for pack in packs if pack.kind == META]
        body.blocks[0].packs = list(range(len(packs)))

    rewrite(filled, edit)
    assert [f.damage for f in verified(filled, "structure").findings] == ["listing"]


def test_a_listing_out_of_order_is_found(filled: Bench):
    vault = filled.open()
    root = vault.root(vault.find("latest"))
    rows = vault.fetcher(root).entries(root.body.blocks[0])
    rows[-1], rows[-2] = rows[-2], rows[-1]
    groups = {vault.keys.chunk_id(g): g for g in (f(rows) for f in GROUPS)}
    writer = PackWriter(vault.keys, META, vault.storage.put)
    for ident, data in groups.items():
        writer.add(ident, data)
    sealed = writer.close()
    vault.index.add(encode_segment(sealed)[0])

    def edit(body: Body, packs: list[PackRef]) -> None:
        packs.append(PackRef(sealed[0].head.name, META, sealed[0].head.size))
        body.blocks[0].groups = list(groups)
        body.blocks[0].packs.append(len(packs) - 1)

    rewrite(filled, edit)
    (finding,) = verified(filled, "structure").findings
    assert (finding.damage, len(finding.points)) == ("listing", 1)
    assert "out of order" in finding.detail


def test_a_canceled_verification_closes_its_session(filled: Bench):
    job = verify.VerifyJob(session=new_ulid(filled.clock()), level="content", started_at=filled.clock())
    progress, vault = Silent(), filled.open()
    units = list(verify.plan(vault, job, progress, now=filled.clock()))
    progress.cancel()
    with pytest.raises(Canceled):
        verify.finish(
            vault, job, (verify.work(vault, job, unit, progress) for unit in units), progress, clock=filled.clock
        )
    assert b'"aborted"' in filled.storage.get(f"sessions/{job.session}/closed")


def test_progress_counts_every_object_that_was_promised(filled: Bench):
    class Counting(Silent):
        promised = done = 0

        def total(self, *, entries: int = 0, bytes: int = 0) -> None:
            self.promised = entries

        def add(self, *, entries: int = 0, bytes: int = 0, bytes_stored: int = 0) -> None:
            self.done += entries

    job = verify.VerifyJob(session=new_ulid(filled.clock()), level="content", started_at=filled.clock())
    progress, vault = Counting(), filled.open()
    for unit in verify.plan(vault, job, progress, now=filled.clock()):
        verify.work(vault, job, unit, progress)
    assert progress.done == progress.promised > 0


def test_work_is_cut_into_units_by_size_and_number(filled: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verify, "UNIT_BYTES", 70_000)
    job = verify.VerifyJob(session=new_ulid(filled.clock()), level="content", started_at=filled.clock())
    units = list(verify.plan(filled.open(), job, Silent(), now=filled.clock()))
    assert [len(unit.packs) for unit in units if unit.packs] == [1, 1, 1, 1]
    assert [unit.number for unit in units] == list(range(len(units)))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["packs/", "meta/"])
@pytest.mark.parametrize("left", [0, 100, 300, 65_504])
def test_an_object_cut_short_at_any_place_never_ends_the_run(filled: Bench, level: verify.Level, kind: str, left: int):
    key = keys_of(filled, kind)[0]
    replace(filled, key, filled.storage.get(key)[:left])
    outcome = verified(filled, level)
    assert outcome.state == "failed"
    assert "size" in {f.damage for f in outcome.findings if f.object == key}


@pytest.mark.parametrize("level", ["footers", "scrub", "content"])
def test_a_damaged_version_number_is_damage_and_no_newer_format(filled: Bench, level: verify.Level):
    key = biggest_pack(filled)
    flip(filled, key, 4)
    assert [(f.object, f.damage) for f in verified(filled, level).findings] == [(key, "damaged")]


@pytest.mark.parametrize("level", ["footers", "content"])
def test_a_pack_of_a_newer_format_is_refused(filled: Bench, level: verify.Level):
    """The newer pack has its right name, as a newer program would store it."""
    vault = filled.open()
    old = vault.root(vault.find("latest")).packs[0]
    data = bytearray(filled.storage.get(pack_key(old.kind, old.name)))
    data[4] = 2
    newer = PackRef(digest_name(data), old.kind, old.size)
    filled.storage.put(pack_key(newer.kind, newer.name), bytes(data))
    rewrite(filled, lambda body, packs: packs.append(newer))
    with pytest.raises(FormatError, match="format 2"):
        verified(filled, level)


@pytest.mark.parametrize(
    ("column", "damage", "says"),
    [
        ("high", "contradiction", "out of order"),
        ("at", "contradiction", "outside"),
        ("pack", "index", "whose pack it does not list"),
    ],
)
def test_a_segment_that_cannot_be_right_is_found_by_structure(filled: Bench, column: str, damage: str, says: str):
    vault = filled.open()
    segment = max(vault.index.segments, key=lambda one: one.rows)
    plain = bytearray(plain_segment(filled, segment.name))
    widths = {"high": 8, "low": 8, "pack": 4, "at": 4}
    at = len(plain) - 38 * segment.rows
    for name, width in widths.items():
        if name == column:
            plain[at : at + width] = b"\xff" * width
        at += width * segment.rows
    data = seal(vault.keys, Purpose.SEGMENT, bytes(plain), context=b"index")
    filled.storage.put(f"index/0/{digest_name(data)}", data)
    findings = [f for f in verified(filled, "structure").findings if f.object.endswith(digest_name(data))]
    assert [f.damage for f in findings] == [damage]
    assert says in findings[0].detail
    assert "run rebuild" in findings[0].advice


@pytest.mark.parametrize("level", LEVELS)
def test_a_forged_mark_of_expiry_hides_no_point_and_is_found(filled: Bench, level: verify.Level):
    name = filled.open().points()[0]
    filled.storage.put(point_key(*name, "expired"), b"{}\nforged")
    outcome = verified(filled, level)
    assert outcome.census.points == 2
    assert [(f.object, f.damage) for f in outcome.findings] == [(point_key(*name, "expired"), "control")]


@pytest.mark.parametrize("level", LEVELS)
def test_a_damaged_move_is_told_and_does_not_stop_the_run_and_points_that_need_none_are_whole(
    filled: Bench, level: verify.Level
):
    filled.storage.put("moves/r/move", b"forged")
    filled.storage.put("moves/r/commit", b"forged")
    outcome = verified(filled, level)
    assert outcome.state == "failed"
    assert {(finding.object, finding.damage) for finding in outcome.findings} >= {("moves/r/commit", "control")}
    assert outcome.lost == []

"""An audit finds what somebody did to a locked vault behind its back, and undoes it."""

import datetime as dt
from pathlib import Path

import msgspec
import pytest

from engine import system
from engine.errors import Forbidden, IntegrityError, StorageError, Unavailable, VaultMissing
from engine.ids import new_ulid, pack_key
from engine.locks import POLICIES, LockPolicy, lock_until
from engine.moves import Move, commit_move, move_key
from engine.point import point_key
from engine.session import PRUNE_PREFIX, Names, put_note, session_states
from engine.sources.files import files_source
from engine.storage import APPLICATION_LEVEL, IMMUTABLE, Directory
from engine.storage.faulty import Fault, Faulty, Mode
from engine.storage.port import Broken
from engine.vault import PointName
from engine.verbs import audit, uncover
from tests.support.locking import LockingBench, audited, locked, through
from tests.support.runs import backup_job, landed, restored, run_backup
from tests.support.vaults import Bench, contents, on_disk, replace, verified, write_files

DAY = dt.timedelta(days=1)


@pytest.fixture
def vault() -> LockingBench:
    return LockingBench()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "home", {"a": b"a" * 50_000, "b/c": b"c" * 10})


def backed_up(bench: Bench, folder: Path, *, days: int = 0) -> PointName:
    job = backup_job(bench, files_source([str(folder)], host="host"))
    return PointName("home", run_backup(bench, msgspec.structs.replace(job, retention_days=days)).point)


def keys_of(bench: Bench, prefix: str) -> list[str]:
    return [stored.key for stored in bench.storage.scan(prefix)]


def assert_whole(bench: Bench, folder: Path) -> None:
    opened = bench.open()
    (name,) = opened.points()
    assert contents(opened, name, below=folder) == on_disk(folder)
    assert verified(bench, "content").findings == []


def kinds(outcome: audit.Outcome) -> set[tuple[str, bool]]:
    return {(finding.kind, finding.repaired) for finding in outcome.findings}


def test_a_vault_that_is_as_it_should_be_has_no_findings(vault: LockingBench, folder: Path) -> None:
    locked(vault, 30)
    name = backed_up(vault, folder)
    outcome = audited(vault)
    root = vault.open().root(name)
    assert (outcome.state, outcome.findings, outcome.lengthened) == ("complete", [], 0)
    assert (outcome.days, outcome.level, outcome.is_proven, outcome.points) == (30, IMMUTABLE, True, 1)
    assert outcome.furthest == root.body.locked_until
    assert outcome.objects == len(root.needed) + 2 + 3  # root and commit; vault.json, a key set and the policy
    assert all("open" in states and "closed" in states for states in session_states(vault.storage).values())


def test_a_vault_without_a_policy_is_audited_and_nothing_in_it_is_locked(vault: LockingBench, folder: Path) -> None:
    backed_up(vault, folder, days=30)
    before = len(vault.memory.log)
    outcome = audited(vault)
    assert (outcome.state, outcome.days, outcome.level, outcome.objects) == ("complete", 0, APPLICATION_LEVEL, 0)
    assert not any(call.verb == "extend_lock" for call in vault.memory.log[before:])


@pytest.mark.rule("B6")
@pytest.mark.invariant(19)
def test_what_is_there_when_a_vault_is_locked_is_locked_by_the_first_audit(vault: LockingBench, folder: Path) -> None:
    name = backed_up(vault, folder, days=100)
    policy = locked(vault, 30)
    outcome = audited(vault)
    root = vault.open().root(name)
    end = lock_until(policy, root.body.ended_at, 100)
    assert (outcome.state, outcome.findings, outcome.furthest) == ("complete", [], end)
    needed = [pack_key(pack.kind, pack.name) for pack in root.needed]
    needed += [point_key(*name, "root"), point_key(*name, "commit")]
    assert {vault.storage.locked_until(key) for key in needed} == {end}
    base = ["vault.json", *keys_of(vault, "keys/"), *keys_of(vault, POLICIES)]
    assert {vault.storage.locked_until(key) for key in base} == {end}
    assert audited(vault).lengthened == 0
    before = len(vault.memory.log)
    backed_up(vault, folder, days=60)
    again = [call for call in vault.memory.log[before:] if call.verb == "extend_lock" and call.key in needed]
    assert again == [], "the ledger knows what the audit locked"


@pytest.mark.invariant(19)
@pytest.mark.parametrize("days", [(100, 0), (0, 100)])
def test_what_two_points_need_is_locked_for_the_longer_one(
    vault: LockingBench, folder: Path, days: tuple[int, int]
) -> None:
    names = [backed_up(vault, folder, days=one) for one in days]
    locked(vault, 30)
    audited(vault)
    first, second = (vault.open().root(name) for name in names)
    shared = {pack_key(p.kind, p.name) for p in first.needed} & {pack_key(p.kind, p.name) for p in second.needed}
    longer = max(vault.storage.locked_until(point_key(*name, "root")) or vault.clock.time for name in names)
    assert shared
    assert {vault.storage.locked_until(key) for key in shared} == {longer}


def test_a_tightened_policy_reaches_older_points_that_it_still_concerns(vault: LockingBench, folder: Path) -> None:
    locked(vault, 10)
    old = backed_up(vault, folder)
    vault.pass_days(40)
    new = backed_up(vault, write_files(folder, {"d": b"d"}))
    policy = locked(vault, 30)
    assert audited(vault).state == "complete"
    end = lock_until(policy, vault.open().root(new).body.ended_at)
    assert vault.storage.locked_until(point_key(*new, "root")) == end
    assert (vault.storage.locked_until(point_key(*old, "root")) or end) < vault.clock.time


@pytest.mark.invariant(19)
def test_a_lock_that_is_shorter_than_promised_is_found_and_made_good(vault: LockingBench, folder: Path) -> None:
    locked(vault, 30)
    name = backed_up(vault, folder)
    root = vault.open().root(name)
    pack = pack_key(root.needed[0].kind, root.needed[0].name)
    for key in (pack, point_key(*name, "root"), point_key(*name, "commit")):
        vault.memory.versions(key)[-1].locked_until = vault.clock.time + DAY
    outcome = audited(vault)
    assert (outcome.state, kinds(outcome)) == ("partial_complete", {("short", True)})
    assert {finding.object for finding in outcome.findings} == {
        pack, point_key(*name, "root"), point_key(*name, "commit")
    }  # fmt: skip
    assert vault.storage.locked_until(pack) == root.body.locked_until
    assert audited(vault).state == "complete"


@pytest.mark.parametrize("attack", ["hide", "cover", "cover and lock", "cover twice and hide"])
@pytest.mark.rule("B6")
def test_whatever_is_hidden_or_covered_comes_back(vault: LockingBench, folder: Path, attack: str) -> None:
    locked(vault, 30)
    name = backed_up(vault, folder)
    before = vault.objects()
    attacked = [key for key in before if not key.startswith(("sessions/", "canary/"))]
    assert {key.split("/")[0] for key in attacked} == {
        "vault.json", "keys", "packs", "meta", "index", "points", "locks"
    }  # fmt: skip
    for key in attacked:
        if attack != "hide":
            replace(vault, key, b"foreign" * 20)
        if attack == "cover and lock":
            vault.storage.extend_lock(key, until=vault.clock.time + 100 * DAY)
        if attack == "cover twice and hide":
            replace(vault, key, b"")
        if "hide" in attack:
            vault.memory.hide(key)
    outcome = audited(vault)
    kind = "hidden" if "hide" in attack else "covered"
    assert (outcome.state, kinds(outcome)) == ("partial_complete", {(kind, True)})
    assert sorted(finding.object for finding in outcome.findings) == sorted(attacked)
    assert {key: vault.storage.get(key) for key in before if key in attacked} == {key: before[key] for key in attacked}
    assert_whole(vault, folder)
    end = vault.open().root(name).body.locked_until
    assert end is not None
    assert (vault.storage.locked_until(point_key(*name, "root")) or end - DAY) >= end
    assert audited(vault).findings == []


def test_a_vault_whose_entrance_was_hidden_opens_again(vault: LockingBench) -> None:
    for attack in (vault.memory.hide, lambda key: replace(vault, key, b"foreign")):
        for prefix in ("vault.json", "keys/"):
            key = keys_of(vault, prefix)[0]
            attack(key)
            with pytest.raises(Exception, match=r"no vault|damaged|gone"):
                vault.open()
            found = uncover.entrance(vault.storage, vault.ring)
            assert [(one.object, one.repaired) for one in found] == [(key, True)]
            vault.open()
    assert uncover.entrance(vault.storage, vault.ring) == []


def test_an_entrance_without_any_right_version_is_told(vault: LockingBench) -> None:
    vault.memory.delete(["vault.json"])
    replace(vault, "vault.json", b"foreign")
    vault.memory.hide("vault.json")
    found = uncover.entrance(vault.storage, vault.ring)
    assert [(one.object, one.hidden, one.repaired) for one in found] == [("vault.json", True, False)]
    with pytest.raises(VaultMissing):
        vault.open()


def test_what_no_version_is_right_of_is_told_and_left_alone(vault: LockingBench, folder: Path) -> None:
    locked(vault, 30)
    name = backed_up(vault, folder)
    key = point_key(*name, "root")
    vault.memory.overwrite(key, b"rotten")
    replace(vault, key, b"foreign")
    outcome = audited(vault)
    assert outcome.state == "failed"
    assert {(one.object, one.kind, one.repaired) for one in outcome.findings} == {
        (key, "covered", False), (key, "point", False)
    }  # fmt: skip
    assert len(vault.memory.versions(key)) == 2


def test_a_sealed_export_comes_back(vault: LockingBench) -> None:
    export = system.Export(at=vault.clock(), vault="v", tables={"a.b": [{"id": 1}]})
    key = system.put(vault.storage, vault.open().keys, export)
    data = vault.storage.get(key)
    for foreign in (b"", data[:4] + b"\x09" + data[5:], data[:-1] + b"x"):
        replace(vault, key, foreign)
    vault.memory.hide(key)
    assert kinds(audited(vault)) == {("hidden", True)}
    assert vault.storage.get(key) == data


def test_objects_of_strangers_are_left_alone(vault: LockingBench) -> None:
    strange = ["readme.txt", "packs/ab/readme", "canary/x", "staging/job/x", "other/vault.json"]
    for key in strange:
        replace(vault, key, b"1")
        replace(vault, key, b"2")
    vault.memory.hide(strange[0])
    assert audited(vault).findings == []
    assert [len(vault.memory.versions(key)) for key in strange] == [3, 2, 0, 2, 2]  # what is no canary any more goes


def test_beats_and_packs_that_a_prune_deletes_are_left_alone(vault: LockingBench, folder: Path) -> None:
    backed_up(vault, folder)
    opened = vault.open()
    session = opened.open_session(new_ulid(vault.clock()), verb="backup", now=vault.clock())
    session.beat(vault.clock())
    session.beat(vault.clock())
    doomed = pack_key(0, "ab" * 32)
    vault.storage.put(doomed, b"x")
    put_note(vault.storage, opened.keys, f"{PRUNE_PREFIX}run/condemned", Names(["ab" * 32]))
    vault.memory.hide(doomed)
    assert audited(vault).findings == []
    assert vault.memory.versions(doomed)[-1].data is None


def test_a_missing_pack_is_found(vault: LockingBench, folder: Path) -> None:
    name = backed_up(vault, folder)
    pack = vault.open().root(name).needed[0]
    vault.storage.delete([pack_key(pack.kind, pack.name)])
    locked(vault, 30)
    outcome = audited(vault)
    assert (outcome.state, kinds(outcome)) == ("failed", {("gone", False)})


def test_what_compaction_moved_is_locked_with_the_point_that_needs_it(vault: LockingBench, folder: Path) -> None:
    name = backed_up(vault, folder)
    opened = vault.open()
    session = opened.open_session(new_ulid(vault.clock()), verb="compact", now=vault.clock())
    old = next(pack for pack in opened.root(name).packs if pack.kind == 0)
    new = msgspec.structs.replace(old, name=f"{old.name}.1")
    vault.storage.put(pack_key(0, new.name), vault.storage.get(pack_key(0, old.name)))
    move = Move("run", session.name, [f"{name.series}/{name.point}"], {old.name: [new]})
    commit_move(session, vault.storage, opened.keys, move, now=vault.clock())
    policy = locked(vault, 30)
    assert audited(vault).state == "complete"
    end = lock_until(policy, opened.root(name).body.ended_at)
    for key in (pack_key(0, new.name), move_key("run", "move"), move_key("run", "commit")):
        assert vault.storage.locked_until(key) == end
    assert vault.storage.locked_until(pack_key(0, old.name)) is None


def test_a_vanished_policy_is_found_while_something_is_still_locked_by_it(vault: LockingBench, folder: Path) -> None:
    locked(vault, 30)
    name = backed_up(vault, folder)
    del vault.memory._objects[keys_of(vault, POLICIES)[0]]
    vault.memory._keys = [key for key in vault.memory._keys if not key.startswith(POLICIES)]
    outcome = audited(vault)
    assert (outcome.state, kinds(outcome)) == ("failed", {("policy", False)})
    assert "lock it again" in outcome.findings[0].detail
    locked(vault, 1)
    again = audited(vault)
    assert (again.state, again.days) == ("complete", 1)
    assert again.furthest == vault.open().root(name).body.locked_until, "what was promised is kept"


def test_a_forged_policy_is_found(vault: LockingBench) -> None:
    locked(vault, 30)
    vault.storage.put(f"{POLICIES}forged", msgspec.json.encode(LockPolicy(9999, vault.clock())) + b"\n" + b"0" * 64)
    outcome = audited(vault)
    assert (outcome.days, kinds(outcome)) == (30, {("policy", False)})


@pytest.mark.rule("B6")
@pytest.mark.parametrize("key", ["prune/x/condemned", "prune/x/tombstones", "moves/x/move"])
def test_a_forged_note_that_nobody_can_delete_stops_no_restore_and_is_told(
    vault: LockingBench, folder: Path, tmp_path: Path, key: str
) -> None:
    locked(vault, 30)
    backed_up(vault, folder)
    vault.storage.put(key, b"forged", locked_until=vault.clock.time + 10_000 * DAY)
    target = tmp_path / "target"
    target.mkdir()
    assert restored(vault, target).state == "complete"
    assert on_disk(landed(target, folder)) == on_disk(folder)
    outcome = audited(vault)
    assert [(one.object, one.kind, one.repaired) for one in outcome.findings] == [(key, "forged", False)]
    with pytest.raises(IntegrityError, match="damaged or forged"):
        backed_up(vault, folder)


@pytest.mark.parametrize("attack", range(4))
def test_a_lock_that_gives_way_is_a_finding_and_no_longer_called_immutable(vault: LockingBench, attack: int) -> None:
    locked(vault, 30)
    vault.memory.attack_lock = (  # type: ignore[method-assign] # a store that went bad after it was locked
        lambda key, *, earlier: Broken(*(number == attack for number in range(4)))
    )
    outcome = audited(vault)
    assert (outcome.state, outcome.level, outcome.is_proven) == ("failed", APPLICATION_LEVEL, False)
    assert kinds(outcome) == {("canary", False)}


def test_canaries_and_ledger_notes_are_cleaned_when_their_locks_have_ended(vault: LockingBench, folder: Path) -> None:
    locked(vault, 1)
    backed_up(vault, folder)
    audited(vault)
    assert keys_of(vault, "canary/") != []
    notes = [key for key in keys_of(vault, "locks/") if not key.startswith(POLICIES)]
    assert notes != []
    vault.pass_days(30)
    audited(vault)
    left = keys_of(vault, "canary/")
    assert len(left) == 1, "only the one of today"
    assert not set(notes) & set(keys_of(vault, "locks/"))
    vault.pass_days(2)
    audited(vault)
    assert left[0] not in keys_of(vault, "canary/")


def test_a_folder_is_audited_too_and_never_called_immutable(tmp_path: Path, folder: Path) -> None:
    bench = Bench(Directory(tmp_path / "vault", create=True))
    bench.storage = Directory(tmp_path / "vault", clock=lambda: bench.clock.time)
    name = backed_up(bench, folder)
    locked(bench, 30)
    outcome = audited(bench)
    assert (outcome.state, outcome.level, outcome.is_proven) == ("complete", APPLICATION_LEVEL, False)
    assert outcome.lengthened > 0
    assert [refusal.locked for refusal in bench.storage.delete([point_key(*name, "root")])] == [True]
    (tmp_path / "vault" / keys_of(bench, POLICIES)[0]).unlink()
    assert kinds(audited(bench)) == {("policy", False)}


def test_a_store_that_refuses_to_lock_is_told(vault: LockingBench, folder: Path) -> None:
    name = backed_up(vault, folder)
    locked(vault, 30)
    plan = [Fault(1, Mode.BEFORE, verb="extend_lock", prefix="points/", times=0, error=Forbidden)]
    outcome = audited(through(vault, Faulty(vault.storage, plan)))
    assert (outcome.state, kinds(outcome)) == ("failed", {("refused", False)})
    assert {one.object for one in outcome.findings} == {point_key(*name, "root"), point_key(*name, "commit")}


def test_a_store_that_forgets_locks_is_told(vault: LockingBench, folder: Path) -> None:
    class Forgetful(Faulty):
        def extend_lock(self, key: str, *, until: dt.datetime) -> None:
            pass

    backed_up(vault, folder)
    locked(vault, 30)
    outcome = audited(through(vault, Forgetful(vault.storage)))
    assert (outcome.state, kinds(outcome)) == ("failed", {("refused", False)})


def test_an_audit_that_fails_anywhere_harms_nothing_and_succeeds_when_repeated(tmp_path: Path, folder: Path) -> None:
    def prepared() -> LockingBench:
        bench = LockingBench()
        locked(bench, 30)
        name = backed_up(bench, folder)
        bench.memory.hide(point_key(*name, "commit"))
        replace(bench, keys_of(bench, "packs/")[0], b"foreign")
        bench.storage.extend_lock(keys_of(bench, "packs/")[0], until=bench.clock.time + DAY)
        return bench

    calls = _calls(prepared())
    for mode in (Mode.BEFORE, Mode.AFTER):
        for at in range(1, calls + 1, 3):
            bench = prepared()
            faulty = Faulty(bench.storage, [Fault(at, mode, error=Unavailable)])
            before = len(bench.memory.log)
            try:
                audited(through(bench, faulty))
            except StorageError:
                assert faulty.fired
            doomed = [call for call in bench.memory.log[before:] if call.verb == "delete" and call.outcome == "ok"]
            assert all(call.key.startswith(("canary/", "locks/")) for call in doomed)
            assert audited(bench).state in ("complete", "partial_complete")
            assert_whole(bench, folder)


def _calls(bench: LockingBench) -> int:
    counting = Faulty(bench.storage)
    assert audited(through(bench, counting)).state == "partial_complete"
    return len(counting.calls)

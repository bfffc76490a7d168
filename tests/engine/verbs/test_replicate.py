"""Points come to the replica whole or not at all, stay when the source loses them, and come back to heal it."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import links, replica, rotation
from engine.damage import damaged_packs, note_damaged
from engine.errors import VaultExists, VaultReadOnly, WrongKey
from engine.ids import FOLDERS, new_ulid, pack_key
from engine.keyproviders.keyring import RecoveryKey
from engine.keys import Keys
from engine.point import point_key
from engine.progress import Silent
from engine.session import fence, open_sessions
from engine.storage import Memory
from engine.storage.faulty import Faulty
from engine.storage.port import Bytes, Storage
from engine.vault import PointName, Vault
from engine.verbs import arrive, replicate
from tests.support.compaction import compacted, end_point, noise, sparse_vault
from tests.support.replication import Replica, everything, packs, replicate_job, replicated
from tests.support.runs import backed_up
from tests.support.vaults import Bench, flip, pruned, verified, write_files


@pytest.fixture
def source() -> Bench:
    return Bench()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_files(tmp_path / "home", {"one": noise(1), "two": noise(2), "three": b"3" * 5000})


@pytest.fixture
def target(source: Bench) -> Replica:
    return Replica(source)


def name_of(outcome) -> PointName:
    return PointName(outcome.series, outcome.point)


# --- The link ---


def test_a_replica_opens_with_its_own_key_and_with_the_recovery_key_of_its_source(source: Bench, target: Replica):
    assert Vault.open(target.storage, provider=target.ring).info == source.open().info
    Vault.open(target.storage, provider=RecoveryKey.parse(source.recovery))
    with pytest.raises(WrongKey):
        Vault.open(target.storage, provider=source.ring)


def test_linking_again_changes_nothing_and_another_vault_is_never_taken_over(source: Bench, target: Replica):
    before = target.objects()
    replica.link(source.open(), target.storage, providers=[target.ring], name="far away", now=source.clock())
    assert target.objects() == before
    stranger = Bench()
    with pytest.raises(VaultExists, match="no replica of that one"):
        replica.link(source.open(), stranger.storage, providers=[stranger.ring], name="x", now=source.clock())
    with pytest.raises(VaultExists, match="no replica of that one"):
        replica.link(source.open(), source.storage, providers=[source.ring], name="x", now=source.clock())


@pytest.mark.rule("E14")
def test_a_replica_takes_no_backups_not_even_when_replication_was_stopped(target: Replica, home: Path):
    with pytest.raises(VaultReadOnly, match="replica of far away"):
        backed_up(target, home)
    links.stop(target.storage, target.open().keys, now=target.clock())
    with pytest.raises(VaultReadOnly, match="replica of far away"):
        backed_up(target, home)
    assert target.open().points() == []


@pytest.mark.rule("E38")
def test_what_was_stopped_is_never_resumed(source: Bench, target: Replica, home: Path):
    backed_up(source, home)
    ended = links.stop(target.storage, target.open().keys, now=target.clock())
    assert links.stop(target.storage, target.open().keys, now=target.clock()) == ended
    with pytest.raises(VaultReadOnly, match="was stopped"):
        replicated(target)
    with pytest.raises(VaultReadOnly, match="no replica"):
        list(replicate.plan(source.open(), replicate_job(target), Silent(), now=source.clock()))


def test_a_replica_is_compacted_only_after_it_stopped_to_follow(source: Bench, target: Replica, home: Path):
    backed_up(source, home)
    replicated(target)
    with pytest.raises(VaultReadOnly, match="compact the one"):
        compacted(target)
    links.stop(target.storage, target.open().keys, now=target.clock())
    assert compacted(target).state == "complete"


def test_a_data_key_of_a_rotation_comes_along_and_a_revoked_recovery_key_opens_neither(
    source: Bench, target: Replica, home: Path
):
    assert not replica.refresh_keys(target.open(), target.ring, now=target.clock())
    rotation.rotate(source.open(), source.ring, now=source.clock(), new_data_key=True)
    new, _ = rotation.replace_recovery_key(source.open(), source.ring, now=source.clock())
    backed_up(source, home)
    assert replica.refresh_keys(target.open(), target.ring, now=target.clock())
    assert not replica.refresh_keys(target.open(), target.ring, now=target.clock())
    replicated(target)
    assert everything(target) == everything(source)
    Vault.open(target.storage, provider=new)
    with pytest.raises(WrongKey):
        Vault.open(target.storage, provider=RecoveryKey.parse(source.recovery))


# --- A limited rate ---


class Crowd:
    """A store that counts who reads at the same time."""

    def __init__(self, inner: Storage) -> None:
        self._inner = inner
        self._mutex = threading.Lock()
        self._reading = self.most = 0

    def pieces(self, key: str) -> Iterator[Bytes]:
        with self._mutex:
            self._reading += key.startswith(FOLDERS)
            self.most = max(self.most, self._reading)
        time.sleep(0.005)
        try:
            yield from self._inner.pieces(key)
        finally:
            with self._mutex:
                self._reading -= key.startswith(FOLDERS)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


@pytest.mark.parametrize("at_once", [1, 3])
def test_no_more_packs_pass_at_once_than_were_asked_for(source: Bench, target: Replica, home: Path, at_once: int):
    for number in range(4):
        (home / f"more{number}").write_bytes(noise(10 + number))
        backed_up(source, home)
    plain, crowd = source.storage, Crowd(source.storage)
    source.storage = crowd  # type: ignore[assignment]
    assert replicated(target, at_once=at_once).state == "complete"
    assert crowd.most == at_once
    source.storage = plain
    assert everything(target) == everything(source)


# --- What comes, and what it costs ---


@pytest.mark.rule("E27", "E40")
def test_all_points_come_and_then_only_what_is_new(source: Bench, target: Replica, home: Path):
    for text in ("a", "b"):
        backed_up(source, write_files(home, {"changing": text.encode() * 3000}))
    first = replicated(target)
    assert (first.state, len(first.points), first.packs) == ("complete", 2, len(packs(source)))
    backed_up(source, write_files(home, {"changing": b"c" * 3000}))
    second = replicated(target)
    assert 0 < second.packs < first.packs
    assert second.latest_at == max(root.root.body.ended_at for root in source.open().catalogue() if root.root)
    third = replicated(target)
    assert (third.points, third.packs, third.state) == ([], 0, "complete")
    assert everything(target) == everything(source)
    assert verified(target, "content").state == "complete"
    assert open_sessions(source.storage) == open_sessions(target.storage) == []
    links.stop(target.storage, target.open().keys, now=target.clock())
    backed_up(source, write_files(home, {"changing": b"d" * 3000}))
    assert len(target.open().points()) == 3


def test_points_come_oldest_first_and_a_limit_leaves_the_rest_for_the_next_run(
    source: Bench, target: Replica, home: Path
):
    made = [backed_up(source, write_files(home, {"n": b"%d" % n * 900})).point for n in range(5)]
    outcome = replicated(target, points_max=2)
    assert [point.partition("/")[2] for point in outcome.points] == made[:2]
    assert outcome.points_left == 3
    replicated(target)
    assert [name.point for name in target.open().points()] == made


def test_no_key_but_the_one_that_signs_notes_is_needed(source: Bench, target: Replica, home: Path):
    backed_up(source, home)
    vault = target.open()
    signing = Keys.__new__(Keys)
    signing.vault_id, signing._control_key = vault.keys.vault_id, vault.keys._control_key
    keyless = Vault(target.storage, signing, vault.info, None)
    keyless.other = source.storage
    job, silent = replicate_job(target), Silent()
    units = list(replicate.plan(keyless, job, silent, now=target.clock()))
    results = [replicate.work(keyless, job, unit, silent) for unit in units]
    assert replicate.finish(keyless, job, results, silent, clock=target.clock).state == "complete"
    assert everything(target) == everything(source)


def test_the_source_has_to_be_named(target: Replica):
    alone = Vault.open(target.storage, provider=target.ring)
    with pytest.raises(VaultReadOnly, match="say where"):
        list(replicate.plan(alone, replicate_job(target), Silent(), now=target.clock()))


# --- What goes at one end ---


@pytest.mark.invariant(22)
def test_what_is_deleted_at_the_source_stays_at_the_replica(source: Bench, target: Replica, home: Path):
    gone = backed_up(source, home)
    replicated(target)
    truth = everything(target)
    end_point(source, gone.series, gone.point)
    backed_up(source, write_files(home, {"one": b"other"}))
    pruned(source)
    pruned(source)
    replicated(target)
    pruned(target)
    pruned(target)
    assert truth.items() <= everything(target).items()
    for key in list(source.objects()):
        source.storage.delete([key])
    assert truth.items() <= everything(target).items()


def test_what_expired_at_the_replica_does_not_come_back(source: Bench, target: Replica, home: Path):
    made = backed_up(source, home)
    replicated(target)
    end_point(target, made.series, made.point)
    for _ in range(4):
        pruned(target)
        assert replicated(target).points == []
    assert target.open().points() == []
    end_point(source, made.series, made.point)
    for _ in range(4):
        pruned(source)
        pruned(target)
    assert not [key for key in target.objects() if key.startswith("points/")]


def test_the_source_is_listed_as_often_for_many_expired_points_as_for_one(source: Bench, target: Replica, home: Path):
    listed = []
    for number in range(3):
        made = backed_up(source, write_files(home, {f"new{number}": noise(number)}))
        replicated(target)
        end_point(target, made.series, made.point)
        for _ in range(3):
            pruned(target)
        calls = source.storage = Faulty(source.storage)
        pruned(target)
        source.storage = calls.inner
        listed.append(calls.count("scan", "points/"))
    assert len(set(listed)) == 1
    assert listed[0] > 0


def test_a_prune_of_the_replica_spares_what_the_source_still_has(source: Bench, target: Replica, home: Path):
    first = backed_up(source, home)
    replicated(target)
    backed_up(source, write_files(home, {"new": noise(9)}))
    end_point(target, first.series, first.point)
    held = packs(target)
    for _ in range(3):
        assert pruned(target).packs_deleted == 0
    assert packs(target) == held
    replicated(target)
    assert everything(target) == {name: files for name, files in everything(source).items() if name != name_of(first)}


def test_a_prune_of_the_replica_frees_what_neither_end_needs(source: Bench, target: Replica, home: Path):
    first = backed_up(source, home)
    replicated(target)
    second = backed_up(source, write_files(home, {"one": b"1", "two": b"2", "three": b"3"}))
    for bench in (source, target):
        end_point(bench, first.series, first.point)
    for bench in (source, source, target, target):
        pruned(bench)
    replicated(target)
    assert packs(target) == packs(source)
    assert list(everything(target)) == [name_of(second)]


def test_a_prune_of_a_replica_does_nothing_without_its_source(source: Bench, target: Replica, home: Path):
    made = backed_up(source, home)
    replicated(target)
    end_point(target, made.series, made.point)
    alone = Bench.over(target, target.storage)
    alone.__class__ = Bench
    with pytest.raises(VaultReadOnly, match="say where"):
        pruned(alone)
    links.stop(target.storage, target.open().keys, now=target.clock())
    pruned(alone)
    pruned(alone)
    assert packs(target) == set()


def test_a_point_whose_packs_a_prune_of_the_replica_condemned_waits(source: Bench, target: Replica, home: Path):
    made = backed_up(source, home)
    replicated(target)
    pruned(target)
    session = target.open().open_session(new_ulid(target.clock()), verb="restore", now=target.clock())
    end_point(target, made.series, made.point)
    lonely = target.beside(Bench())  # a source that has none of the packs: the prune condemns them
    assert pruned(lonely).packs_condemned > 0
    target.storage.delete([point_key(made.series, made.point, "expired")])
    outcome = replicated(target)
    assert outcome.state == "partial_complete"
    assert b"condemned" in outcome.problems[0].detail.encode()
    assert target.open().points() == []
    session.close("done", target.clock())


# --- What compaction moved ---


def test_points_that_were_compacted_come_with_what_was_moved(source: Bench, target: Replica, tmp_path: Path):
    name = sparse_vault(source, tmp_path / "home")
    assert compacted(source).packs_moved > 0
    for _ in range(3):
        pruned(source)
    truth = everything(source)
    replicated(target)
    assert everything(target) == truth
    assert verified(target, "content").state == "complete"
    for _ in range(3):
        pruned(target)
    assert everything(target) == truth
    assert packs(target) == packs(source)
    end_point(target, *name)


def test_points_that_came_before_the_compaction_stay_as_they_came(source: Bench, target: Replica, tmp_path: Path):
    sparse_vault(source, tmp_path / "home")
    replicated(target)
    truth = everything(target)
    compacted(source)
    for _ in range(3):
        pruned(source)
    backed_up(source, write_files(tmp_path / "home", {"newest": noise(77)}))
    replicated(target)
    for _ in range(3):
        pruned(target)
    assert truth.items() <= everything(target).items()
    assert everything(target) == everything(source)


# --- Damage ---


def one_pack(bench: Bench) -> str:
    vault = bench.open()
    return max(pack.name for name in vault.points() for pack in vault.root(name).needed if pack.kind == 0)


@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_damage_at_the_source_is_found_and_not_spread(source: Bench, target: Replica, home: Path, tmp_path, how: str):
    backed_up(source, home)
    name = one_pack(source)
    kept = backed_up(source, write_files(tmp_path / "other", {"file": noise(50)}), series="other")
    if how == "flipped":
        flip(source, pack_key(0, name), 5000)
    else:
        source.storage.delete([pack_key(0, name)])
    outcome = replicated(target)
    assert outcome.state == "partial_complete"
    assert outcome.points == [f"other/{kept.point}"]
    assert ("damaged" if how == "flipped" else "missing") in outcome.problems[0].detail
    assert name not in packs(target)
    assert damaged_packs(source.storage) == {name}
    assert set(everything(target)) == {name_of(kept)}


@pytest.mark.parametrize("how", ["flipped", "missing"])
@pytest.mark.parametrize("end", ["source", "replica"])
def test_each_end_heals_from_the_other(source: Bench, target: Replica, home: Path, end: str, how: str):
    backed_up(source, home)
    replicated(target)
    truth = everything(source)
    broken = source if end == "source" else target
    name = one_pack(broken)
    if how == "flipped":
        flip(broken, pack_key(0, name), 5000)
    else:
        broken.storage.delete([pack_key(0, name)])
    assert isinstance(broken.storage, Memory)
    broken.storage.write_once = False  # a heal writes over what is damaged
    assert verified(broken, "scrub").state != "complete"
    assert damaged_packs(broken.storage) == {name}
    healed = replicated(target).healed
    assert (healed.source, healed.here) == (([name], []) if end == "source" else ([], [name]))
    assert damaged_packs(broken.storage) == set()
    assert verified(broken, "content").state == "complete"
    assert everything(source) == everything(target) == truth


def test_what_is_damaged_at_both_ends_is_told(source: Bench, target: Replica, home: Path):
    backed_up(source, home)
    replicated(target)
    name = one_pack(source)
    for bench in (source, target):
        flip(bench, pack_key(0, name), 5000)
        note_damaged(bench.storage, bench.open().keys, [name])
    healed = replicated(target).healed
    assert (healed.source, healed.here, healed.left) == ([], [], [name, name])


def test_a_note_of_damage_that_is_not_true_only_goes(source: Bench, target: Replica, home: Path):
    backed_up(source, home)
    name = one_pack(source)
    note_damaged(source.storage, source.open().keys, [name])
    before = source.storage.get(pack_key(0, name))
    assert replicated(target).healed.source == [name]
    assert source.storage.get(pack_key(0, name)) == before
    assert damaged_packs(source.storage) == set()


# --- Replicators that die ---


def prepared(target: Replica, home: Path) -> tuple[PointName, str]:
    """Let a replication die between root and commit; return the point and its session."""
    made = backed_up(target.source, home)
    job, silent = replicate_job(target), Silent()
    vault = target.open()
    for unit in replicate.plan(vault, job, silent, now=target.clock()):
        result = replicate.work(vault, job, unit, silent)
        session = vault.join_session(job.session)
        arrive.prepare(vault, vault.across(), session, result.complete, now=target.clock())
    return name_of(made), job.session


def test_a_root_that_a_running_replication_has_put_is_left_alone(target: Replica, home: Path):
    name, session = prepared(target, home)
    held = packs(target)
    assert pruned(target).waiting == []
    assert target.open().points() == []
    assert packs(target) == held
    assert session in open_sessions(target.storage)
    assert replicated(target).points == [f"{name.series}/{name.point}"]
    assert everything(target) == everything(target.source)


def test_the_point_of_a_fenced_replication_is_committed_as_its_source_did(target: Replica, home: Path):
    name, session = prepared(target, home)
    fence(target.storage, target.open().keys, session)
    assert pruned(target).resolved.committed == [f"{name.series}/{name.point}"]
    key = point_key(*name, "commit")
    assert target.storage.get(key) == target.source.storage.get(key)
    assert everything(target) == everything(target.source)
    assert pruned(target).state == "complete"
    assert not list(target.storage.scan(links.INCOMING))


def test_the_root_of_an_aborted_replication_stays_for_the_next_one(target: Replica, home: Path):
    name, session = prepared(target, home)
    target.open().join_session(session).close("aborted", target.clock())
    assert pruned(target).resolved.dropped == []
    assert replicated(target).points == [f"{name.series}/{name.point}"]
    assert everything(target) == everything(target.source)
    pruned(target)
    assert not list(target.storage.scan(links.INCOMING))


@pytest.mark.parametrize("stopped", [True, False])
def test_the_root_of_an_aborted_replication_goes_when_no_other_can_bring_it(target: Replica, home: Path, stopped: bool):
    name, session = prepared(target, home)
    target.open().join_session(session).close("aborted", target.clock())
    if stopped:
        links.stop(target.storage, target.open().keys, now=target.clock())
    else:
        end_point(target.source, *name)
    assert pruned(target).resolved.dropped == [f"{name.series}/{name.point}"]
    pruned(target)
    assert not list(target.storage.scan(links.INCOMING))
    assert not [key for key in target.objects() if key.startswith("points/")]


def test_a_commit_without_its_root_does_not_show_the_point_before_it_is_whole(target: Replica, home: Path):
    name = name_of(backed_up(target.source, home))
    key = point_key(*name, "commit")
    target.storage.put(key, target.source.storage.get(key))
    job, silent, vault = replicate_job(target), Silent(), target.open()
    unit = next(iter(replicate.plan(vault, job, silent, now=target.clock())))
    result = replicate.work(vault, job, unit, silent)
    arrive.prepare(vault, vault.across(), vault.join_session(job.session), result.complete, now=target.clock())
    assert target.open().points() == []

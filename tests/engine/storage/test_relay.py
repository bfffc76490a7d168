"""What one store sends on to another: it comes whole and as its name says, or not at all."""

import os
import socketserver
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from engine import halt
from engine.errors import Altered, Canceled, Forbidden, Locked, NotFound, ShortRead, StorageError, Unavailable
from engine.ids import digest_name
from engine.storage import Directory, Location, Memory, Retrying, Storage
from engine.storage.faulty import Fault, Faulty, Mode
from engine.storage.port import Bytes
from engine.storage.s3 import S3Storage
from tests.engine.storage.conftest import LOCKING, NOON, Case, HandTime, location, new_bucket
from tests.services import S3

KEY = "packs/ab/one"
MIB = 1 << 20
SERVED = [pytest.param(name, marks=pytest.mark.services) for name in ("minio", "radosgw")]
flowing = pytest.mark.parametrize("case", ["directory", *SERVED], indirect=True)
BODY = os.urandom(3 * MIB + 5)


class Piecewise(Memory):
    """A store that yields these pieces, whatever key is asked for, and then raises `error`; `alive` are in memory."""

    def __init__(self, *pieces: bytes, error: Exception | None = None) -> None:
        super().__init__()
        self.made, self.error = pieces, error
        self.alive = self.most = self.reads = 0

    def pieces(self, key: str) -> Iterator[Bytes]:
        self.reads += 1
        for made in self.made:
            piece = _Piece(made)
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(piece, self._drop)
            yield piece
        if self.error is not None:
            raise self.error

    def _drop(self) -> None:
        self.alive -= 1


class _Piece(bytearray):
    pass


def holding(body: bytes) -> Memory:
    source = Memory()
    source.put(KEY, body)
    return source


def cut(body: bytes, size: int = MIB) -> list[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


def flipped(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


def relay(store: Storage, source: Storage, body: bytes = BODY) -> None:
    store.relay(KEY, source, size=len(body), sha256=digest_name(body))


def keys(store: Storage) -> list[str]:
    return [stored.key for stored in store.scan("")]


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 20 * MIB])
def test_an_object_passes_in_and_out_whole(store: Storage, size: int) -> None:
    body = os.urandom(size)
    relay(store, holding(body), body)
    assert store.get(KEY) == body
    assert b"".join(store.pieces(KEY)) == body
    back = Memory()
    relay(back, store, body)
    assert back.get(KEY) == body
    assert keys(store) == [KEY]


@pytest.mark.parametrize("size", [1, MIB - 1, 3 * MIB])
@pytest.mark.parametrize("change", ["flipped", "shorter", "longer", "empty"])
def test_what_is_not_what_it_should_be_is_not_stored(store: Storage, size: int, change: str) -> None:
    body = os.urandom(size)
    changed = {
        "flipped": flipped(body),
        "shorter": body[:-1],
        "longer": body + b"x",
        "empty": b"",
    }[change]
    with pytest.raises(Altered, match="came"):
        relay(store, holding(changed), body)
    assert keys(store) == []


def test_what_the_source_lacks_is_not_found(store: Storage) -> None:
    with pytest.raises(NotFound):
        relay(store, Memory())
    assert keys(store) == []


def retrying_twice(store: Storage) -> Storage:
    below = store.inner if isinstance(store, Retrying) else store
    return Retrying(below, attempts=2, sleep=lambda _: None)


@pytest.mark.parametrize("error", [Unavailable("gone"), ShortRead("cut"), Forbidden("no"), Canceled("stopped")])
@pytest.mark.parametrize("pieces", [0, 1, 3])
def test_a_source_that_fails_midway_leaves_nothing_and_its_error_comes_through(
    store: Storage, error: Exception, pieces: int
) -> None:
    broken = Piecewise(*cut(BODY)[:pieces], error=error)
    with pytest.raises(type(error), match=str(error.args[0])):
        relay(retrying_twice(store), broken)
    assert keys(store) == []
    relay(store, holding(BODY))
    assert store.get(KEY) == BODY


def test_what_is_there_already_stays_as_it_is(store: Storage) -> None:
    for _ in range(2):
        relay(store, holding(BODY))
    assert store.get(KEY) == BODY
    assert keys(store) == [KEY]


@pytest.mark.parametrize("case", LOCKING, indirect=True)
def test_a_locked_object_takes_the_same_bytes_again_and_no_others(case: Case) -> None:
    case.storage.put(KEY, BODY, locked_until=case.now() + (NOON - NOON.replace(hour=11)))
    relay(case.storage, holding(BODY))
    if not case.replaces_locked:
        with pytest.raises(Locked):
            relay(case.storage, holding(b"other"), b"other")
    assert case.storage.get(KEY) == BODY


@flowing
def test_an_object_is_never_held_whole(store: Storage) -> None:
    body = os.urandom(MIB) * 24
    source = Piecewise(*cut(body))
    relay(store, source, body)
    assert source.most <= 3
    assert store.get(KEY) == body


@flowing
def test_an_order_to_stop_is_heard_between_two_pieces(store: Storage) -> None:
    heard = 0

    def order() -> None:
        nonlocal heard
        heard += 1
        if heard > 2:
            raise Canceled("stopped")

    with halt.heard(order), pytest.raises(Canceled):
        relay(store, Piecewise(*cut(BODY)))
    assert keys(store) == []


# --- Buckets ---


def bucket(service: S3, **options: object) -> S3Storage:
    return S3Storage(location(service, new_bucket(service)), **options)  # type: ignore[arg-type]


def test_a_server_compares_what_comes_and_no_trial_is_left(s3_service: S3) -> None:
    store = bucket(s3_service)
    assert store._refuses_altered()
    assert keys(store) == []


@pytest.mark.parametrize("backwards", [False, True])
def test_an_object_passes_from_server_to_server(minio_service: S3, radosgw_service: S3, backwards: bool) -> None:
    source, target = bucket(minio_service), bucket(radosgw_service)
    if backwards:
        source, target = target, source
    source.put(KEY, BODY)
    relay(target, source)
    assert target.get(KEY) == BODY
    for damaged in (flipped(BODY), BODY[:-1], BODY + b"x"):
        target.delete([KEY])
        source.put(KEY, damaged)
        with pytest.raises(Altered):
            relay(target, source)
        assert keys(target) == []


def test_what_was_altered_on_its_way_only_is_fetched_again(minio_service: S3) -> None:
    class Flickering(Piecewise):
        def pieces(self, key: str) -> Iterator[Bytes]:
            yield from super().pieces(key)
            self.made = (BODY,)

    store, source = bucket(minio_service), Flickering(flipped(BODY))
    relay(store, source)
    assert (store.get(KEY), source.reads) == (BODY, 2)


@pytest.mark.parametrize("store", ["source", "target"])
def test_a_limit_of_either_end_holds_in_small_pieces(minio_service: S3, store: str) -> None:
    time = HandTime()
    taken: list[int] = []

    def pace(count: int) -> None:
        taken.append(count)
        time.sleep(count / 1_000_000)

    limited = {store: {"pace": pace}}
    source, target = (
        bucket(minio_service, **limited.get("source", {})),
        bucket(minio_service, **limited.get("target", {})),
    )
    source.put(KEY, BODY)
    begun_s = time.seconds
    relay(target, source)
    assert time.seconds - begun_s == pytest.approx(len(BODY) / 1_000_000, rel=0.001)
    assert max(taken) <= 64 * 1024
    assert target.get(KEY) == BODY


class _Believing(BaseHTTPRequestHandler):
    """A server that compares nothing: it answers yes to whatever came whole."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) == length:
            self.server.took[self.path] = body  # type: ignore[attr-defined]
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def believing() -> Iterator[tuple[S3Storage, dict[str, bytes]]]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Believing) as server:
        server.took = {}  # type: ignore[attr-defined]
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        place = Location.parse("s3://bucket/v", endpoint=endpoint, access_key="key", secret_key="secret")
        yield S3Storage(place, connect_s=2, read_s=2), server.took  # type: ignore[attr-defined]
        server.shutdown()


def test_for_a_server_that_compares_nothing_it_is_done_here() -> None:
    with believing() as (store, took):
        with pytest.raises(Altered):
            relay(store, holding(flipped(BODY)))
        assert not [path for path in took if path.endswith(KEY)]
        relay(store, holding(BODY))
        assert took[f"/bucket/v/{KEY}"] == BODY
        assert len([path for path in took if "/canary/" in path]) == 1  # tried once


def test_who_can_not_try_compares_here() -> None:
    with believing() as (store, took):
        store._refuses_altered = lambda: False  # type: ignore[assignment]
        with pytest.raises(Altered):
            relay(store, Piecewise(*cut(BODY)[:-1], bytes(5)))
        assert took == {}


# --- Again and again ---


def test_a_failure_at_either_end_is_tried_again_from_the_beginning() -> None:
    for faulty_end in ("source", "target"):
        time = HandTime()
        below = holding(BODY)
        source: Storage = Faulty(below, [Fault(1, Mode.SHORT, "get", times=3)]) if faulty_end == "source" else below
        target = Faulty(Memory(), [Fault(1, Mode.BEFORE, "put", times=3)] if faulty_end == "target" else [])
        relay(Retrying(target, sleep=time.sleep), source)
        assert target.inner.get(KEY) == BODY
        assert len(time.slept) == 3


def test_a_dead_source_is_given_up_after_the_attempts_of_one_end_alone() -> None:
    time = HandTime()
    dead = Faulty(Memory(), [Fault(1, Mode.BEFORE, times=0)])
    with pytest.raises(Unavailable):
        relay(Retrying(Memory(), attempts=4, sleep=time.sleep), Retrying(dead, attempts=4, sleep=time.sleep))
    assert dead.count("get") == 4


def test_the_first_piece_is_asked_for_again_and_no_other() -> None:
    time = HandTime()
    store = Retrying(Faulty(holding(BODY), [Fault(1, Mode.BEFORE, "get", times=2)]), sleep=time.sleep)
    assert b"".join(store.pieces(KEY)) == BODY
    assert len(time.slept) == 2
    broken = Piecewise(*cut(BODY)[:2], error=Unavailable("gone"))
    with pytest.raises(StorageError, match="gone"):
        list(Retrying(broken, sleep=time.sleep).pieces(KEY))
    assert broken.reads == 1


def test_a_folder_that_has_other_bytes_under_the_name_gets_the_right_ones(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    store = Directory(tmp_path_factory.mktemp("store"))
    store.put(KEY, bytes(len(BODY)))
    relay(store, holding(BODY))
    assert store.get(KEY) == BODY

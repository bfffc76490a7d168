"""What goes wrong with a bucket, and that each case is told apart."""

import os
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.errors import Forbidden, NotFound, ShortRead, StorageError, StorageFull, Unavailable, Unreachable
from engine.ids import digest_name
from engine.storage import Location, Storage, Stored
from engine.storage.s3 import S3Storage
from tests.engine.storage.conftest import NOON, HandTime, admin, location, new_bucket
from tests.services import S3

CALLS: dict[str, Callable[[Storage], object]] = {
    "put": lambda store: store.put("a", b"x"),
    "get": lambda store: store.get("a"),
    "scan": lambda store: list(store.scan("")),
    "delete": lambda store: store.delete(["a"]),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def at(endpoint: str, **options: object) -> S3Storage:
    place = Location.parse("s3://bucket/v", endpoint=endpoint, access_key="key", secret_key="secret", **options)
    return S3Storage(place, connect_s=1, read_s=1)


@contextmanager
def answering(answer: bytes, *, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve the same bytes to every request, then close; an empty answer just closes."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                peer = tls.wrap_socket(self.request, server_side=True) if tls else self.request
                peer.recv(65536)
                peer.sendall(answer)
                peer.close()
            except OSError:
                pass

    socketserver.ThreadingTCPServer.allow_reuse_address = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def http(status: int, code: str = "", *, body: bytes = b"", length: int | None = None) -> bytes:
    body = body or (f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode() if code else b"")
    kind = "application/xml" if code else "text/html"
    size = len(body) if length is None else length
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def test_the_server_refuses_a_body_that_is_not_what_the_digest_says(s3_service: S3) -> None:
    store = S3Storage(location(s3_service, new_bucket(s3_service)))
    body = bytes(3 << 20)
    store.put("large", body, sha256=digest_name(body))
    store.put("small", b"x", sha256=digest_name(b"x"))
    assert (store.get("large"), store.get("small")) == (body, b"x")
    with pytest.raises(StorageError):
        store.put("changed-on-the-way", b"other", sha256=digest_name(b"x"))
    assert [one.key for one in store.scan("")] == ["large", "small"]


@every_call
def test_a_wrong_secret_is_forbidden(minio_service: S3, call: Callable[[Storage], object]) -> None:
    place = location(minio_service, new_bucket(minio_service), secret_key="wrong-secret")
    with pytest.raises(Forbidden, match=r"SignatureDoesNotMatch.*Check the access key"):
        call(S3Storage(place))


def test_an_unknown_access_key_is_forbidden(minio_service: S3) -> None:
    place = location(minio_service, new_bucket(minio_service), access_key="nobody-knows")
    with pytest.raises(Forbidden, match="InvalidAccessKeyId"):
        S3Storage(place).put("a", b"x")


@every_call
def test_a_bucket_closed_to_strangers_is_forbidden(minio_service: S3, call: Callable[[Storage], object]) -> None:
    place = location(minio_service, new_bucket(minio_service), access_key="", secret_key="")
    with pytest.raises(Forbidden):
        call(S3Storage(place))


@every_call
def test_a_missing_bucket_is_unreachable(minio_service: S3, call: Callable[[Storage], object]) -> None:
    with pytest.raises(Unreachable, match=r"NoSuchBucket.*the bucket's name"):
        call(S3Storage(location(minio_service, "no-such-bucket-here")))


@every_call
def test_a_closed_port_is_unreachable(call: Callable[[Storage], object]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match="Check the endpoint's address"):
            call(at(f"http://127.0.0.1:{taken.getsockname()[1]}"))


@every_call
def test_an_unknown_host_is_unreachable(call: Callable[[Storage], object]) -> None:
    with pytest.raises(Unreachable):
        call(at("http://no-such-host.invalid"))


@every_call
def test_a_server_that_never_answers_is_unavailable(call: Callable[[Storage], object]) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(Unavailable):
            call(at(f"http://127.0.0.1:{silent.getsockname()[1]}"))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", Unavailable),
        (http(500, "InternalError"), Unavailable),
        (http(503, "SlowDown"), Unavailable),
        (http(503), Unavailable),
        (http(429, "TooManyRequests"), Unavailable),
        (http(400, "RequestTimeout"), Unavailable),
        (http(507, "XMinioStorageFull"), StorageFull),
        (http(507), StorageFull),
        (http(403, "QuotaExceeded"), StorageFull),
        (http(403, "AccessDenied"), Forbidden),
        (http(403), Forbidden),
        (http(418, body=b"<html>hello"), Unreachable),
        (http(301, "PermanentRedirect"), Unreachable),
        (http(400, "InvalidArgument"), StorageError),
    ],
)
@pytest.mark.parametrize("verb", ["put", "scan"])
def test_each_answer_has_its_meaning(answer: bytes, expected: type[StorageError], verb: str) -> None:
    with answering(answer) as port, pytest.raises(expected) as raised:
        CALLS[verb](at(f"http://127.0.0.1:{port}"))
    assert type(raised.value) is expected


def test_a_page_that_is_no_s3_answer_is_unreachable() -> None:
    with answering(http(200, body=b"<html>hello")) as port, pytest.raises(Unreachable, match="not answer like an S3"):
        list(at(f"http://127.0.0.1:{port}").scan(""))


def test_a_body_cut_short_is_a_short_read() -> None:
    with answering(http(200, body=b"only this", length=100)) as port, pytest.raises(ShortRead) as raised:
        at(f"http://127.0.0.1:{port}").get("a")
    assert raised.value.transient


def test_a_store_that_ignores_ranges_is_found_out() -> None:
    with (
        answering(http(200, body=b"the whole object")) as port,
        pytest.raises(StorageError, match="ignores ranges"),
    ):
        at(f"http://127.0.0.1:{port}").get("a", offset=4, length=5)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a self-signed certificate for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    crt, key = folder / "crt.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += [
        "-keyout",
        str(key),
        "-out",
        str(crt),
        "-subj",
        "/CN=127.0.0.1",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return crt, key


@pytest.fixture
def tls(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    """Return the server's side of that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


def test_a_certificate_nobody_vouches_for_is_unreachable(tls: ssl.SSLContext) -> None:
    with answering(http(200, body=b"body"), tls=tls) as port, pytest.raises(Unreachable, match="its TLS setting"):
        at(f"https://127.0.0.1:{port}").get("a")


def test_a_certificate_in_the_ca_file_is_trusted(tls: ssl.SSLContext, certificate: tuple[Path, Path]) -> None:
    with answering(http(200, body=b"body"), tls=tls) as port:
        assert at(f"https://127.0.0.1:{port}", ca_file=str(certificate[0])).get("a") == b"body"


def test_verification_can_be_switched_off(tls: ssl.SSLContext) -> None:
    with answering(http(200, body=b"body"), tls=tls) as port:
        assert at(f"https://127.0.0.1:{port}", tls_verify=False).get("a") == b"body"


def test_https_to_a_plain_server_is_unreachable() -> None:
    with answering(http(200, body=b"body")) as port, pytest.raises(Unreachable):
        at(f"https://127.0.0.1:{port}").get("a")


def test_a_ca_file_that_is_missing_is_named() -> None:
    with pytest.raises(Unreachable, match="the CA file /no/such/file cannot be used"):
        at("https://127.0.0.1:1", ca_file="/no/such/file").get("a")


def test_two_vaults_in_one_bucket_do_not_see_each_other(minio_service: S3) -> None:
    bucket = new_bucket(minio_service)
    one, two, whole = (S3Storage(location(minio_service, bucket, prefix)) for prefix in ("v", "v2", ""))
    one.put("a", b"1")
    two.put("a", b"2")
    assert list(one.scan("")) == list(two.scan("")) == [Stored("a", 1)]
    assert (one.get("a"), two.get("a")) == (b"1", b"2")
    assert [stored.key for stored in whole.scan("")] == ["v/a", "v2/a"]
    assert one.delete(["a"]) == []
    assert two.get("a") == b"2"


@pytest.mark.invariant(20)
@pytest.mark.parametrize("server", ["minio_service", "radosgw_service"])
@pytest.mark.services
def test_a_delete_leaves_neither_versions_nor_markers(server: str, request: pytest.FixtureRequest) -> None:
    service: S3 = request.getfixturevalue(server)
    bucket = new_bucket(service, object_lock=True)
    store, client = S3Storage(location(service, bucket, "")), admin(service)
    store.put("a", b"1")
    store.put("a", b"2")
    client.remove_object(bucket, "a")
    store.put("a.1", b"3")
    with pytest.raises(NotFound):
        store.get("a")
    assert store.delete(["a"]) == []
    left = client.list_objects(bucket, recursive=True, include_version=True)
    assert [item.object_name for item in left] == ["a.1"]


@pytest.mark.invariant(20)
@pytest.mark.parametrize("server", ["minio_service", "radosgw_service"])
@pytest.mark.services
def test_a_delete_never_adds_a_marker_over_a_locked_version(server: str, request: pytest.FixtureRequest) -> None:
    service: S3 = request.getfixturevalue(server)
    bucket = new_bucket(service, object_lock=True)
    store = S3Storage(location(service, bucket, ""))
    store.put("a", b"1", locked_until=NOON)
    assert [refusal.locked for refusal in store.delete(["a"])] == [True]
    left = list(admin(service).list_objects(bucket, recursive=True, include_version=True))
    assert [(item.object_name, item.is_delete_marker) for item in left] == [("a", False)]
    assert store.get("a") == b"1"


def test_a_forked_process_makes_its_own_client(minio_service: S3) -> None:
    store = S3Storage(location(minio_service, new_bucket(minio_service)))
    store.put("a", b"parent")
    child = os.fork()
    if child == 0:
        try:
            store.put("b", b"child")
            os._exit(0 if store.get("a") == b"parent" else 2)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert store.get("b") == b"child"


def test_a_paced_bucket_takes_the_time_its_limit_says(minio_service: S3) -> None:
    time = HandTime()
    taken: list[int] = []

    def pace(count: int) -> None:
        taken.append(count)
        time.sleep(count / 1_000_000)

    store = S3Storage(location(minio_service, new_bucket(minio_service)), pace=pace)
    body = os.urandom(3_000_000)
    store.put("a", body)
    assert time.seconds == pytest.approx(3.0)
    assert store.get("a") == body
    assert time.seconds == pytest.approx(6.0)
    assert max(taken) <= 64 * 1024

"""Versions and delete markers of a bucket: LIST them, read, delete and attack them by their id."""

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import NamedTuple

from minio import Minio
from minio.commonconfig import COMPLIANCE, GOVERNANCE
from minio.datatypes import Object, parse_list_objects
from minio.deleteobjects import DeleteError, DeleteObject
from minio.retention import Retention

from engine.errors import StorageError, Unavailable
from engine.storage.keys import check_key, check_prefix
from engine.storage.port import Broken, Refusal, StoredVersion
from engine.storage.s3client import reading
from engine.storage.s3errors import TRANSIENT_CODES, translated

PAGE = 1000
_LISTERS = 4
_AFTER_ALL = "~"  # sorts after every character that a key may have
_UNVERSIONED = "null"


class _Page(NamedTuple):
    """One answer to a LIST of versions; `marker` is where the next page begins, None behind the last."""

    versions: list[Object]
    marker: tuple[str, str] | None


class S3Versions:
    """The versions below one prefix of a bucket. In a bucket without versions each object has one, named `null`."""

    def __init__(self, client: Callable[[], Minio], bucket: str, prefix: str) -> None:
        self._client, self._bucket, self._prefix = client, bucket, prefix

    def versions(self, prefix: str, *, after: str = "") -> Iterator[StoredVersion]:
        """Yield every version and marker, one page of a thousand per request."""
        check_prefix(prefix)
        return self._scan(prefix, after)

    def _scan(self, prefix: str, after: str) -> Iterator[StoredVersion]:
        start = self._prefix + after if after else ""
        marker: tuple[str, str] | None = (start, "")
        with translated(self._bucket):
            while marker is not None:
                page = self._page(self._prefix + prefix, *marker)
                marker = page.marker
                for found in page.versions:
                    if (found.object_name or "") <= start:
                        continue  # Ceph's marker is the first that is listed, not the last that is not
                    yield StoredVersion(
                        (found.object_name or "").removeprefix(self._prefix),
                        found.version_id or _UNVERSIONED,
                        found.size or 0,
                        (found.is_latest or "").lower() == "true",
                        found.is_delete_marker,
                    )

    def get_version(self, key: str, version_id: str) -> bytes:
        """Return the bytes of one version."""
        check_key(key)
        with translated(key):
            return self._body(self._prefix + key, version_id)

    def version_locked_until(self, key: str, version_id: str) -> dt.datetime | None:
        """Return one version's lock."""
        check_key(key)
        with translated(key):
            return self.lock_end(self._prefix + key, version_id)

    def delete_versions(self, key: str, version_ids: Sequence[str]) -> list[Refusal]:
        """Delete these versions of one key."""
        check_key(key)
        return self.delete([(self._prefix + key, version_id) for version_id in version_ids])

    def of_keys(self, keys: Sequence[str]) -> list[tuple[str, str]]:
        """Return (name in the bucket, version id) of all versions and markers of exactly these keys.

        A request answers for up to a thousand versions that lie together, and at least for one of the keys.
        """
        names = sorted(self._prefix + key for key in keys)
        share = -(-len(names) // _LISTERS) or 1
        parts = [names[at : at + share] for at in range(0, len(names), share)]
        with ThreadPoolExecutor(_LISTERS) as listers:
            return [version for found in listers.map(self._of_names, parts) for version in found]

    def delete(self, versions: Sequence[tuple[str, str]]) -> list[Refusal]:
        """Delete by version id; return those that are still there, each with its reason."""
        refusals: list[Refusal] = []
        for at in range(0, len(versions), PAGE):
            part = versions[at : at + PAGE]
            with translated(part[0][0]):
                refusals += self._delete_page(part)
        return list({refusal.key: refusal for refusal in refusals}.values())

    def lock_end(self, name: str, version_id: str | None = None) -> dt.datetime | None:
        """Return the lock of one version, or the newest, as its headers show it."""
        # Not get_object_retention: minio cannot read the nanoseconds that Ceph answers with.
        found = self._client().stat_object(self._bucket, name, version_id=version_id)
        text = (found.metadata or {}).get("x-amz-object-lock-retain-until-date")
        return dt.datetime.fromisoformat(text).astimezone(dt.UTC) if text else None

    def attack(self, key: str, *, earlier: dt.datetime) -> Broken:
        """Try to break the lock of the newest version; leaves a second version with other bytes under the key."""
        client, name = self._client(), self._prefix + key
        with translated(key):
            version = client.stat_object(self._bucket, name).version_id
        shortened = self._works(name, version, Retention(COMPLIANCE, earlier))
        weakened = self._works(name, version, Retention(GOVERNANCE, earlier))
        with translated(key):
            body = self._body(name, version)
            client._put_object(self._bucket, name, b"overwritten", {})
            overwritten = self._body(name, version) != body
            client._delete_objects(self._bucket, [DeleteObject(name, version)], bypass_governance_mode=True)
            deleted = (name, version) not in self._of_names([name])
        return Broken(shortened, weakened, deleted, overwritten)

    def _works(self, name: str, version: str | None, retention: Retention) -> bool:
        """Say whether the store allowed another lock; no answer at all raises."""
        try:
            with translated(name):
                self._client().set_object_retention(self._bucket, name, retention, version)
        except StorageError as error:
            if error.transient:
                raise
            return False
        return True

    def _page(self, prefix: str, after: str, after_version: str) -> _Page:
        """LIST one page; those of one key stand together, which the answer's two kinds do not."""
        query: dict[str, str | list[str] | tuple[str]]
        query = {"versions": "", "prefix": prefix, "delimiter": "", "max-keys": str(PAGE), "encoding-type": "url"}
        if after:
            query["key-marker"] = after
        if after_version:
            query["version-id-marker"] = after_version
        response = self._client()._execute("GET", self._bucket, query_params=query)
        found, is_truncated, marker, version = parse_list_objects(response)
        found.sort(key=lambda one: one.object_name or "")
        return _Page(found, (marker or "", version or "") if is_truncated else None)

    def _of_names(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Go through the versions of sorted names, jumping over what lies between them."""
        with translated(names[0]):
            common, wanted = _common_start(names[0], names[-1]), set(names)
            found: list[tuple[str, str]] = []
            left = list(reversed(names))
            # A marker must lie below the prefix; with a single name the prefix is the name, and no marker is needed.
            marker: tuple[str, str] | None = ("" if len(wanted) == 1 else _just_before(left[-1]), "")
            while left and marker is not None:
                page = self._page(common, *marker)
                found += [
                    (one.object_name or "", one.version_id or _UNVERSIONED)
                    for one in page.versions
                    if one.object_name in wanted
                ]
                marker = page.marker
                if marker is not None and page.versions:
                    # Not the marker itself: MinIO puts words of its own behind the key.
                    reached = page.versions[-1].object_name or ""
                    while left and left[-1] < reached:
                        left.pop()
                    if left and left[-1] > reached:
                        marker = (_just_before(left[-1]), "")
            return found

    def _delete_page(self, versions: Sequence[tuple[str, str]]) -> list[Refusal]:
        wanted = set(versions)
        result = self._client()._delete_objects(self._bucket, [DeleteObject(*version) for version in wanted])
        gone = {(d.name, d.version_id or _UNVERSIONED) for d in result.object_list}
        failed = {(e.name or "", e.version_id or _UNVERSIONED): e for e in result.error_list}
        refusals = []
        for name, version in sorted(wanted - gone):
            refusal = self._refusal(name, version, failed.get((name, version)))
            if refusal is not None:
                refusals.append(refusal)
        return refusals

    def _refusal(self, name: str, version: str, error: DeleteError | None) -> Refusal | None:
        code = (error.code if error else "") or ""
        if code in ("NoSuchKey", "NoSuchVersion"):
            return None
        key = name.removeprefix(self._prefix)
        if error is None or code in TRANSIENT_CODES:
            raise Unavailable(f"{key}: {code or 'the store did not say whether it was deleted'}")
        lock = None
        with contextlib.suppress(StorageError), translated(key):
            lock = self.lock_end(name, version)
        if lock is not None:
            return Refusal(key, f"locked until {lock.isoformat()}", locked=True)
        return Refusal(key, f"{code}: {error.message or 'no reason given'}", locked=code == "ObjectLocked")

    def _body(self, name: str, version: str | None) -> bytes:
        with reading(self._client().get_object(self._bucket, name, version_id=version)) as response:
            return bytes(response.read())


def _common_start(first: str, last: str) -> str:
    """Return what two texts, and all that sort between them, begin with."""
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    return first[:same]


def _just_before(name: str) -> str:
    """Return a marker after which `name` comes, and before it no other key of ours."""
    return name[:-1] + chr(ord(name[-1]) - 1) + _AFTER_ALL

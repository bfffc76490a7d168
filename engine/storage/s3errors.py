"""What a failed S3 request means."""

import contextlib
import errno
import ssl
from collections.abc import Iterator
from http.client import IncompleteRead
from xml.etree.ElementTree import ParseError

from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3 import exceptions as http

from engine.errors import (
    Forbidden,
    Locked,
    NotFound,
    ShortRead,
    StorageError,
    StorageFull,
    Unavailable,
    Unreachable,
)

TRANSIENT_CODES = frozenset(
    {
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "TooManyRequests",
        "XMinioServerNotInitialized",
    }
)
_MEANING: dict[str, type[StorageError]] = {
    "NoSuchKey": NotFound,
    "NoSuchVersion": NotFound,
    "NoSuchBucket": Unreachable,
    "PermanentRedirect": Unreachable,
    "AuthorizationHeaderMalformed": Unreachable,
    "InvalidRange": ShortRead,
    "ObjectLocked": Locked,
    "QuotaExceeded": StorageFull,
    "XMinioAdminBucketQuotaExceeded": StorageFull,
    "XMinioStorageFull": StorageFull,
    **dict.fromkeys(TRANSIENT_CODES, Unavailable),
}
_NO_ROUTE = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH)


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise what went wrong inside as one of the engine's storage errors."""
    try:
        yield
    except S3Error as error:
        raise _answered(what, error) from error
    except (MinioException, ParseError) as error:
        raise _not_s3(what, error) from error
    except (http.HTTPError, OSError) as error:
        raise _not_answered(what, error) from error


def _answered(what: str, error: S3Error) -> StorageError:
    text = f"{what}: {error.code}: {error.message}"
    meaning = _MEANING.get(error.code or "")
    return meaning(text) if meaning else _by_status(text, error.response.status)


def _by_status(text: str, status: int) -> StorageError:
    if status in (401, 403):
        return Forbidden(text)
    if status == 507:
        return StorageFull(text)
    if status == 429 or status >= 500:
        return Unavailable(text)
    return StorageError(text)


def _not_s3(what: str, error: Exception) -> StorageError:
    status = error.status_code if isinstance(error, ServerError) else 0
    if isinstance(error, InvalidResponseError):
        status = error._code
    if status in (401, 403, 429) or status >= 500:
        return _by_status(f"{what}: the store answered with status {status}", status)
    return Unreachable(f"{what}: this does not answer like an S3 store (status {status or 'unknown'})")


def _not_answered(what: str, error: Exception) -> StorageError:
    text = f"{what}: {error}"
    cause = error.__cause__ if isinstance(error, http.NewConnectionError) else error
    if isinstance(error, http.NameResolutionError | http.LocationValueError):
        return Unreachable(text)
    if isinstance(error, http.SSLError):
        inner = error.args[0] if error.args else None
        ended = isinstance(inner, ssl.SSLEOFError | ssl.SSLZeroReturnError)
        return Unavailable(text) if ended else Unreachable(text)
    if isinstance(cause, OSError) and cause.errno in _NO_ROUTE:
        return Unreachable(text)
    if isinstance(error, http.ProtocolError) and any(
        isinstance(part, http.IncompleteRead | IncompleteRead) for part in error.args
    ):
        return ShortRead(text)
    return Unavailable(text)

"""The parameter file (-p): which vault, which key, how patient. TOML, without a secret in it."""

import datetime as dt
import hashlib
import re
import stat
import tomllib
from pathlib import Path

import msgspec

from engine.connections.pipe import IDLE_S, OPEN_S
from engine.errors import EngineError
from engine.ids import valid_series
from engine.keyproviders.spec import KeySpec
from engine.runner import VaultOpener, usable_cores
from engine.storage.location import Location

_PLAIN = re.compile(r"[A-Z0-9_]+(@[A-Z0-9_]+)?")
_UNFIT = re.compile(r"[^a-z0-9_]+")
_SERIES_MAX = 63
_DIGITS = 8


class BadParameters(EngineError):
    """The parameter file, or a file that it names, can't be used; the message says what to change."""


class S3(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How to reach a bucket; the secret key stands in a file of its own."""

    endpoint: str
    access_key: str = ""
    secret_key_file: str = ""
    region: str = "us-east-1"
    ca_file: str = ""
    tls_verify: bool = True
    path_style: bool = True


class Parameters(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What the file may say (docs/sources/sap-hana.md has it as a table). Every path is a whole one.

    `workers` processes move data; pipes are never fewer than HANA asks for, because they share processes. `prefix`
    begins the name of every series. `reads_from`, another database as DB@SID, is where restore and inquire look: for
    copies of a system.
    """

    vault: str
    key_file: str = ""
    key: str = ""
    key_secret_file: str = ""
    prefix: str = "hana"
    reads_from: str = ""
    retention_days: int = 0
    workers: int = 0
    bytes_per_s: int = 0
    cache_dir: str = ""
    log_file: str = ""
    open_timeout_s: float = OPEN_S
    idle_timeout_s: float = IDLE_S
    s3: S3 | None = None

    @property
    def processes(self) -> int:
        return self.workers or usable_cores()

    @property
    def cache(self) -> Path:
        """Return the folder for copies of the index, and for names that roots told."""
        return Path(self.cache_dir) if self.cache_dir else Path("~/.cache/backupsite").expanduser()


def load(path: Path) -> Parameters:
    """Return what the file says. Raises BadParameters."""
    try:
        wanted = msgspec.convert(tomllib.loads(path.read_text("utf-8")), Parameters)
    except OSError as error:
        raise BadParameters(f"the parameter file {path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadParameters(f"{path} is not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise BadParameters(f"{path}: {error}") from error
    _check(path, wanted)
    return wanted


def _check(path: Path, wanted: Parameters) -> None:
    """Raise BadParameters for values that can't be meant."""
    for name in ("key_file", "key_secret_file", "cache_dir", "log_file"):
        value: str = getattr(wanted, name)
        if value and not value.startswith("/"):
            raise BadParameters(f"{path}: {name} must be an absolute path: HANA says from where it calls the agent")
    if bool(wanted.key_file) == bool(wanted.key):
        raise BadParameters(f"{path}: give key_file, a service key file, or key, the address of a key: one of them")
    if wanted.open_timeout_s <= 0 or wanted.idle_timeout_s <= 0:
        raise BadParameters(f"{path}: a time-out must be longer than nothing")
    if wanted.workers < 0 or wanted.retention_days < 0 or wanted.bytes_per_s < 0:
        raise BadParameters(f"{path}: workers, retention_days and bytes_per_s can't be negative")
    if not valid_series(wanted.prefix) or len(wanted.prefix) > 20:
        raise BadParameters(f"{path}: prefix must be 1 to 20 of a-z 0-9 . _ -, and begin with a letter or digit")


def opener(wanted: Parameters) -> VaultOpener:
    """Return what opens the vault. Raises BadParameters."""
    s3 = wanted.s3
    options = {} if s3 is None else {
        "endpoint": s3.endpoint, "access_key": s3.access_key, "region": s3.region, "tls_verify": s3.tls_verify,
        "ca_file": s3.ca_file, "path_style": s3.path_style,
        "secret_key": _secret(s3.secret_key_file) if s3.secret_key_file else "",
    }  # fmt: skip
    try:
        place = Location.parse(wanted.vault, bytes_per_s=wanted.bytes_per_s, **options)
        if wanted.key:
            secret = _secret(wanted.key_secret_file) if wanted.key_secret_file else ""
            key = KeySpec.parse(wanted.key, secret=secret)
        else:
            key = KeySpec(url="keyring:", secret=_secret(wanted.key_file))
    except ValueError as error:
        raise BadParameters(f"the parameter file: {error}") from error
    return VaultOpener(location=place, key=key, cache=str(wanted.cache), clock=clock)


def series_of(prefix: str, database: str) -> str:
    """Return the series of HANA's DB@SID: `<prefix>-<sid>-<db>`; names that don't fit in get digits of their SHA-256.

    Two databases never share one: what is changed to fit carries the digits.
    """
    name, _, system = database.rpartition("@")
    parts = [part for part in (system, name) if part]
    text = "-".join([prefix, *(_UNFIT.sub("-", part.lower()).strip("-") or "x" for part in parts)])
    if len(text) <= _SERIES_MAX and _PLAIN.fullmatch(database):
        return text
    digits = hashlib.sha256(database.encode()).hexdigest()[:_DIGITS]
    return f"{text[: _SERIES_MAX - _DIGITS - 1]}-{digits}"


def clock() -> dt.datetime:
    """Return the moment."""
    return dt.datetime.now(dt.UTC)


def _secret(path: str) -> str:
    """Return what a secret file holds. Raises BadParameters for one that others can read."""
    try:
        status = Path(path).stat()
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise BadParameters(f"{path} holds a secret and is open to others: run `chmod 600 {path}`")
        return Path(path).read_text("utf-8").strip()
    except OSError as error:
        raise BadParameters(f"{path}, which the parameter file names, can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadParameters(f"{path} is not a file of text") from error

"""From the options to the vault: address, keys, cache."""

import contextlib
import datetime as dt
import os
from collections.abc import Iterator
from pathlib import Path

from engine.cli.options import Common, Opening
from engine.cli.output import WrongUsage
from engine.errors import BadKeyFile
from engine.keyproviders.spec import KeySpec
from engine.patterns import BadPattern
from engine.runner import VaultOpener, usable_cores
from engine.storage.location import Location

_NO_KEY = (
    "no key: give --key-file FILE or set BACKUPSITE_KEY_FILE, "
    "or give --key ADDRESS (BACKUPSITE_KEY), or --recovery-key-file FILE (BACKUPSITE_RECOVERY_KEY)"
)


def clock() -> dt.datetime:
    """Return the moment."""
    return dt.datetime.now(dt.UTC)


@contextlib.contextmanager
def checking_input() -> Iterator[None]:
    """Turn what the engine says of bad input into wrong usage."""
    try:
        yield
    except (ValueError, BadPattern) as error:
        raise WrongUsage(str(error)) from error


def location(options: Common) -> Location:
    """Return the vault's address. Raises WrongUsage."""
    url = options.vault
    is_s3 = url.startswith("s3://")
    if not is_s3 and "://" not in url:
        url = os.path.abspath(url)
    if is_s3 and not options.endpoint:
        raise WrongUsage(f"{url} needs an endpoint: set BACKUPSITE_S3_ENDPOINT to http(s)://host:port")
    # AWS_CA_BUNDLE is set for a whole machine: it must not get in the way of a store without TLS.
    ca_file = options.ca_file if options.tls_verify and not options.endpoint.startswith("http://") else ""
    s3 = {
        "endpoint": options.endpoint, "access_key": options.access_key, "secret_key": options.secret_key,
        "session_token": options.session_token, "region": options.region, "tls_verify": options.tls_verify,
        "ca_file": ca_file, "path_style": options.path_style,
    }  # fmt: skip
    with checking_input():
        return Location.parse(url, **s3 if is_s3 else {})


def opener(options: Opening) -> VaultOpener:
    """Return what opens the vault, here and in workers. Raises WrongUsage, BadKeyFile."""
    cache = "" if options.no_cache else str(_cache(options))
    return VaultOpener(location=location(options), key=key(options), cache=cache, clock=clock)


def key(options: Opening) -> KeySpec:
    """Return the key to open with: shares, the recovery key, or what `service_key` returns."""
    if offline := recovery_key(options):
        return KeySpec(url="recovery:", secret=offline)
    return service_key(options)


def recovery_key(options: Opening) -> str:
    """Return the recovery key that was given, as it is or in shares; empty when none was. Raises BadKeyFile."""
    if options.shares_file:
        # The words are loaded by those who open with them.
        from engine.keyproviders.shares import join

        lines = [line for path in options.shares_file for line in read_key(path).splitlines()]
        return join([line for line in lines if line.strip() and not line.startswith("#")]).text()
    if not options.recovery_key.strip().upper().startswith("BSRK"):
        return read_key(Path(options.recovery_key)) if options.recovery_key else ""
    return options.recovery_key


def service_key(options: Common) -> KeySpec:
    """Return the key that is not for emergencies: an address, a key file's text, a key file. Raises WrongUsage."""
    if options.key:
        return addressed(options.key, secret=options.key_secret, secret_file=options.key_secret_file)
    if options.keyring:
        return KeySpec(url="keyring:", secret=options.keyring)
    if options.key_file is None:
        raise WrongUsage(_NO_KEY)
    return KeySpec(url="keyring:", secret=read_key(options.key_file))


def addressed(address: str, *, secret: str, secret_file: Path | None) -> KeySpec:
    """Return the key at an address. Raises WrongUsage, BadKeyFile."""
    if secret_file is not None:
        secret = read_key(secret_file).strip()
    with checking_input():
        return KeySpec.parse(address, secret=secret)


def key_file(options: Common) -> Path:
    """Return the key file's path. Raises WrongUsage when none was given."""
    if options.key_file is None:
        raise WrongUsage("no key file: give --key-file FILE or set BACKUPSITE_KEY_FILE; it is made if it isn't there")
    return options.key_file


def read_key(path: Path) -> str:
    """Return a key file's text. Raises BadKeyFile."""
    try:
        return path.read_text("ascii")
    except FileNotFoundError:
        raise BadKeyFile(f"there is no key file at {path}") from None
    except UnicodeDecodeError:
        raise BadKeyFile(f"{path} is not a key file") from None
    except OSError as error:
        raise BadKeyFile(f"the key file {path} cannot be read: {error.strerror}") from error


def workers(given: int | None) -> int:
    """Return how many processes to use. Raises WrongUsage."""
    if given is not None and given < 1:
        raise WrongUsage(f"--workers {given} can't do anything: give at least 1")
    return given or usable_cores()


def _cache(options: Opening) -> Path:
    if options.cache_dir is not None:
        return options.cache_dir.absolute()
    return (options.xdg_cache_home or Path("~/.cache").expanduser()).absolute() / "backupsite"

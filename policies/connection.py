"""Try whether a source can be reached, with the words that a person needs when it can't."""

import datetime as dt
import threading

import structlog
from django.conf import settings

from accounts.refusals import Refused
from accounts.secrets import SecretUnreadable
from engine.errors import EngineError, SourceUnavailable
from engine.sources.kinds import AnySource
from policies import reading
from policies.models import Source, SourceKind

log = structlog.get_logger(__name__)

AT_ONCE = 8
HIDDEN_FROM = 4  # shorter secrets occur in texts by chance

_trials = threading.BoundedSemaphore(AT_ONCE)


class SourceUnreachable(Refused):
    """A trial connection failed; the text says how."""

    code = "source_unreachable"


class ArchiveRefused(Refused):
    """The bucket's default storage class is an archive class (A3)."""

    code = "archive_bucket"


class TooManyTrials(Refused):
    """So many trials wait for servers that do not answer that another one has to wait."""

    code = "too_many_trials"


def check(source: Source) -> str:
    """Connect to the source as a backup would, and return what is wrong; empty when nothing is.

    Never takes longer than SOURCE_CHECK_S: a server that hangs is left to its own time-out, in a thread of its own.
    Raises TooManyTrials, and AddressRefused, which no installation should learn to live with.
    """
    try:
        engine_source = reading.engine_source(source)
        hidden = reading.secret_texts(source)
    except (SecretUnreadable, EngineError) as error:
        return _text(error)
    try:
        found = _attempt(engine_source)
    except TimeoutError:
        return f"nothing answered within {settings.SOURCE_CHECK_S:g} s"
    return _told(found, hidden) if found else ""


def check_class(source: Source) -> None:
    """See that a bucket's own class is none of an archive (A3). Raises ArchiveRefused.

    A bucket that can't be looked at from here passes: the worker looks again before each backup.
    """
    if source.kind != SourceKind.BUCKET:
        return
    # Loading the S3 client takes long: only buckets pay for it.
    from engine.connections.bucket import ArchiveBucket

    try:
        found = _attempt(reading.engine_source(source))
    except (Refused, SecretUnreadable, EngineError, TimeoutError):
        return
    if isinstance(found, ArchiveBucket):
        raise ArchiveRefused(
            f"{found.args[0]}: buckets of archive classes can't be read. Choose one of the class Standard or "
            "Infrequent Access."
        )


def _attempt(engine_source: AnySource) -> Exception | None:
    """Try a source in a thread of its own; return what is wrong. Raises TooManyTrials, TimeoutError."""
    trials = _trials
    if not trials.acquire(blocking=False):
        raise TooManyTrials(f"{AT_ONCE} sources are being tried already. Try again in a minute.")
    found: list[Exception] = []
    done = threading.Event()

    def attempt() -> None:
        try:
            engine_source.check()
        except Exception as error:
            found.append(error)
        finally:
            trials.release()
            done.set()

    threading.Thread(target=attempt, name="trial", daemon=True).start()
    if not done.wait(settings.SOURCE_CHECK_S):
        raise TimeoutError
    return found[0] if found else None


def _told(error: Exception, hidden: list[str]) -> str:
    if not isinstance(error, EngineError | OSError):
        log.error("source.check_crashed", error=type(error).__name__, exc_info=error)
        return f"The program failed: {type(error).__name__}. Its log tells more."
    text = _text(error)
    for secret in hidden:
        if len(secret) >= HIDDEN_FROM:
            text = text.replace(secret, "***")
    return text


def _text(error: Exception) -> str:
    """Return an error's words, without the advice that is meant for whoever runs a job."""
    return str(error.args[0]) if isinstance(error, SourceUnavailable) and error.args else str(error)


def note(source: Source, *, now: dt.datetime) -> None:
    """Try the source and keep the result in its row."""
    try:
        source.check_error = check(source)
    except Refused as refusal:
        source.check_error = str(refusal)
    source.checked_at = now
    Source.objects.filter(pk=source.pk).update(checked_at=now, check_error=source.check_error)

"""Everything the engine raises. Retry looks only at `transient`.

EngineError
  + StorageError
    - NotFound           the object does not exist
    - Locked             a WORM lock forbids the change until `until`
    - Forbidden          the store knows who we are and says no
    - Unreachable        permanent: no such host or bucket, refused, wrong TLS
    - StorageFull        no space left, or the quota is used up
    - Unavailable        transient: time-out, 5xx, slow down
    - ShortRead          transient: fewer bytes came than the object has
    - CommitUnknown      the commit was sent and no answer came: the point may exist or not
  + IntegrityError       stored bytes are not what was written: damaged or forged
    - MissingObject      the vault needs an object that is not there
    - Altered            what came from a store is not what was asked for
  + FormatError          written by a newer or foreign program: this one must not touch it
  + KeyError_
    - WrongKey           the key does not open this vault
      - RevokedKey         it did once; a rotation revoked it
    - BadKeyFile         the key file, the recovery key or a share of it cannot be read
    - KeyRefused         the key service or token says no: no such key, no permission, wrong PIN
    - KeyUnavailable     transient: the key service or token does not answer, or is sealed
    - LastKey            nothing at hand would open the vault after this rotation
  + VaultExists / VaultMissing
  + VaultReadOnly        the vault is a replica of another: what it holds follows from that one
  + ExpiryRefused        an expiry would take too much, or goes by an odd clock: a person must confirm it
  + PointMissing         no such recovery point, or its beginning is not unique
  + SessionFenced        a prune took this session for dead; nothing was committed, run again
  + LockError            a vault's lock cannot be set or kept as asked
    - LockUnsupported    the store's locks don't hold, or it has none
    - LockCannotLoosen   a lock can only be made longer
    - LockFailed         an object could not be locked as long as a point needs it: nothing was committed
  + SourceError
    - SourceMissing      a named path, bucket, database or share does not exist
    - SourceDenied       the source knows who we are and says no, or does not know us
    - SourceUnavailable  transient: the source does not answer, or went away in the middle
    - SourceIncomplete   a stream ended before its end: a program failed, or the sign of completeness is missing
    - ExtraMissing       a package or program that this kind of source needs is not installed
  + TargetError
    - TargetMissing      the folder to restore into does not exist (C27)
    - TargetDenied       the target says no to these credentials
    - TargetUnavailable  transient: the target does not answer, or went away in the middle
    - TargetNotEmpty     the target holds what a restore would mix with or overwrite
    - TargetFailed       the program or server that takes a restored stream refused it
    - UnsafePath         a stored path would leave the target
  + Canceled             a person stopped it
    - Superseded         another worker has taken this work over: leave alone what is shared with it
"""

import datetime as dt


class EngineError(Exception):
    """Base of all: `transient` says whether the same call may succeed later, `advice` what to do."""

    transient = False
    advice = ""

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}. {self.advice}" if self.advice else text


class StorageError(EngineError):
    """A storage call did not do what was asked."""


class NotFound(StorageError):
    """The object does not exist."""


class Locked(StorageError):
    """A WORM lock forbids the change."""

    def __init__(self, message: str, *, until: dt.datetime | None = None) -> None:
        super().__init__(message)
        self.until = until


class Forbidden(StorageError):
    """The store refused these credentials."""

    advice = "Check the access key, the secret key and the bucket's policy"


class Unreachable(StorageError):
    """The store or the bucket cannot be found at this address."""

    advice = "Check the endpoint's address, its TLS setting and the bucket's name"


class StorageFull(StorageError):
    """The store has no room for the object; nothing was written under its name."""

    advice = "Free some space or raise the quota, then run it again: what was stored is used"


class Unavailable(StorageError):
    """The store did not answer, or asked to slow down."""

    transient = True


class ShortRead(StorageError):
    """The answer ended before the promised number of bytes."""

    transient = True


class CommitUnknown(StorageError):
    """A commit was sent and its outcome could not be learnt."""

    advice = "List the points: if it is there it is complete and safe; if not, run the backup again"


class IntegrityError(EngineError):
    """Stored bytes fail their digest or authentication."""

    advice = "The object is damaged or was changed outside this program; run verify to see what is affected"


class MissingObject(IntegrityError):
    """Something that the vault's records refer to is gone."""


class Altered(IntegrityError):
    """Bytes that came from a store are not those that were asked for; nothing was stored."""


class FormatError(EngineError):
    """The format is newer than this program, or not ours."""

    advice = "Use a newer version of this program"


class KeyError_(EngineError):
    """A key is missing or not the right one."""


class WrongKey(KeyError_):
    """The key is well formed but opens no wrap of this vault."""

    advice = "Use the service key file made when the vault was created, or its recovery key"


class RevokedKey(WrongKey):
    """The key opened this vault until a rotation revoked it."""

    advice = "Use a key that is in force, or the newest recovery key"


class BadKeyFile(KeyError_):
    """A key file, a typed recovery key or a share of one is malformed."""


class KeyRefused(KeyError_):
    """The key service or the token refused; the same call will be refused again until somebody changes something."""


class KeyUnavailable(KeyError_):
    """The key service or the token did not answer, or is sealed."""

    transient = True
    advice = "Try again when the key service answers; the recovery key opens the vault without it"


class LastKey(KeyError_):
    """After the rotation nothing at hand would open the vault."""

    advice = "Add another key first, prove that it opens the vault, then revoke this one"


class VaultMissing(EngineError):
    """There is no vault at this place."""

    advice = "Create one with init, or check the address"


class VaultExists(EngineError):
    """There is a vault at this place already."""


class VaultReadOnly(EngineError):
    """The vault is a replica of another, or was one; it takes no backups of its own (E14, E38)."""


class ExpiryRefused(EngineError):
    """A guard of expiry says no: nothing was expired."""

    advice = "Look at the preview (a dry run) and at the clock; if both are right, confirm it (--confirm)"


class PointMissing(EngineError):
    """No recovery point answers to this id."""


class SessionFenced(EngineError):
    """The session was declared dead by a prune before it could commit; nothing became visible."""

    transient = True
    advice = "Run it again: what was stored is used"


class LockError(EngineError):
    """A vault's lock cannot be set or kept as asked."""


class LockUnsupported(LockError):
    """The store has no lock that holds, or its clock is not ours."""

    advice = "Use a bucket that was made with object lock on, on a server that keeps compliance locks"


class LockCannotLoosen(LockError):
    """Somebody asked for a shorter lock than the vault has."""

    advice = "A lock can only be made longer"


class LockFailed(LockError):
    """An object is not locked as long as a point needs it; nothing was committed."""

    advice = "Run audit: it tells what is wrong with the locks; then run the backup again"


class SourceError(EngineError):
    """The source cannot be read at all (single entries are reported, not raised)."""


class SourceMissing(SourceError):
    """A named path, bucket, database or share does not exist."""


class SourceDenied(SourceError):
    """The source refused these credentials, or what they asked for."""

    advice = "Check the source's credentials and their rights"


class SourceUnavailable(SourceError):
    """The source does not answer, or went away while it was read; nothing was committed."""

    transient = True
    advice = "Run it again when the source answers: what was stored is used"


class SourceIncomplete(SourceError):
    """A stream ended before its end; nothing was committed."""

    advice = "Mend what the message tells and run it again: what was stored is used"


class ExtraMissing(SourceError):
    """This kind of source or target needs a package or program that is not installed."""


class TargetError(EngineError):
    """The restore target cannot be used."""


class TargetMissing(TargetError):
    """The folder to restore into does not exist."""

    advice = "Make the folder first: a restore never creates the folder it is given"


class TargetDenied(TargetError):
    """The target refused these credentials, or what they asked for."""

    advice = "Check the target's credentials and their rights"


class TargetUnavailable(TargetError):
    """The target does not answer, or went away while it was written."""

    transient = True
    advice = "Run the restore again when the target answers"


class TargetNotEmpty(TargetError):
    """The target holds something already that the restore would mix with or overwrite."""


class TargetFailed(TargetError):
    """The program or server that takes a restored stream refused it."""


class UnsafePath(TargetError):
    """A stored path would lead outside the target."""


class Canceled(EngineError):
    """A person asked to stop; nothing was committed."""


class Superseded(Canceled):
    """Another worker has taken this work over and shares its session: end without closing it."""

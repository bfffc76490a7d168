"""What each command takes. The classes are the commands' signatures; their docstrings are the help."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from msgspec import Struct
from typer import Argument, Option

_VAULT = "Vault"
_S3 = "S3 vaults"
_OUTPUT = "Output"


class SameName(StrEnum):
    """What a restore does with a file that stands in the place of a restored one."""

    SKIP = "skip"
    OVERWRITE = "overwrite"


class Level(StrEnum):
    """How deep a verification looks; each level does what the ones before it do."""

    INVENTORY = "inventory"
    STRUCTURE = "structure"
    FOOTERS = "footers"
    SCRUB = "scrub"
    CONTENT = "content"


class Common(Struct, kw_only=True):
    """What every command takes."""

    vault: Annotated[str, Argument(metavar="VAULT", help="A folder, or s3://bucket/prefix.")]
    key_file: Annotated[
        Path | None,
        Option(envvar="BACKUPSITE_KEY_FILE", help="The service key file.", rich_help_panel=_VAULT),
    ] = None
    key: Annotated[
        str,
        Option(
            envvar="BACKUPSITE_KEY",
            help="A key elsewhere, in place of the key file: transit:https://host:8200/mount/key, "
            "or pkcs11:/module.so?token=NAME&label=NAME.",
            metavar="ADDRESS",
            rich_help_panel=_VAULT,
        ),
    ] = ""
    key_secret_file: Annotated[
        Path | None,
        Option(
            envvar="BACKUPSITE_KEY_SECRET_FILE",
            help="A file with what reaching that key needs: a token, the secret id of an AppRole, or a PIN.",
            metavar="FILE",
            rich_help_panel=_VAULT,
        ),
    ] = None
    key_secret: Annotated[str, Option("--key-secret", envvar="BACKUPSITE_KEY_SECRET", hidden=True)] = ""
    keyring: Annotated[str, Option("--keyring", envvar="BACKUPSITE_KEYRING", hidden=True)] = ""
    endpoint: Annotated[
        str,
        Option(
            "--s3-endpoint",
            envvar=["BACKUPSITE_S3_ENDPOINT", "AWS_ENDPOINT_URL"],
            help="http(s)://host:port.",
            rich_help_panel=_S3,
        ),
    ] = ""
    # Secrets have no place on a command line that every user of the host can read: given by the environment, not shown.
    access_key: Annotated[
        str, Option("--s3-access-key", envvar=["BACKUPSITE_S3_ACCESS_KEY", "AWS_ACCESS_KEY_ID"], hidden=True)
    ] = ""
    secret_key: Annotated[
        str, Option("--s3-secret-key", envvar=["BACKUPSITE_S3_SECRET_KEY", "AWS_SECRET_ACCESS_KEY"], hidden=True)
    ] = ""
    session_token: Annotated[
        str, Option("--s3-session-token", envvar=["BACKUPSITE_S3_SESSION_TOKEN", "AWS_SESSION_TOKEN"], hidden=True)
    ] = ""
    region: Annotated[
        str,
        Option(
            "--s3-region",
            envvar=["BACKUPSITE_S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"],
            rich_help_panel=_S3,
            help="The region's name.",
        ),
    ] = "us-east-1"
    ca_file: Annotated[
        str,
        Option(
            "--s3-ca-file",
            envvar=["BACKUPSITE_S3_CA_FILE", "AWS_CA_BUNDLE"],
            help="Certificates to trust instead of the system's.",
            rich_help_panel=_S3,
        ),
    ] = ""
    tls_verify: Annotated[
        bool,
        Option(
            "--s3-tls-verify/--s3-no-tls-verify",
            envvar="BACKUPSITE_S3_TLS_VERIFY",
            help="Check the server's certificate.",
            rich_help_panel=_S3,
        ),
    ] = True
    path_style: Annotated[
        bool,
        Option(
            "--s3-path-style/--s3-virtual-host-style",
            envvar="BACKUPSITE_S3_PATH_STYLE",
            help="Name the bucket in the path, or in the host.",
            rich_help_panel=_S3,
        ),
    ] = True
    json: Annotated[bool, Option("--json", help="One JSON document on stdout.", rich_help_panel=_OUTPUT)] = False
    quiet: Annotated[
        bool, Option("--quiet", "-q", help="Only problems and errors, no progress.", rich_help_panel=_OUTPUT)
    ] = False


class InitOptions(Common, kw_only=True):
    """Make a vault and print its recovery key, once.

    The service key file is made when it does not exist. Keep copies of the key file and of the recovery key in a
    safe place: without one of them nobody can read the vault.
    """


class Opening(Common, kw_only=True):
    """What every command takes that opens a vault."""

    recovery_key: Annotated[
        str,
        Option(
            "--recovery-key-file",
            envvar="BACKUPSITE_RECOVERY_KEY",
            help="A file with the recovery key, in place of the key file. The variable may hold the key itself.",
            metavar="FILE",
            rich_help_panel=_VAULT,
        ),
    ] = ""
    shares_file: Annotated[
        list[Path],
        Option(
            help="A file with shares of the recovery key, one a line, in place of the key file; may be repeated.",
            metavar="FILE",
            rich_help_panel=_VAULT,
        ),
    ] = []
    cache_dir: Annotated[
        Path | None,
        Option(
            envvar="BACKUPSITE_CACHE_DIR",
            help="Where copies of the vault's index are kept. Default: ~/.cache/backupsite.",
            rich_help_panel=_VAULT,
        ),
    ] = None
    xdg_cache_home: Annotated[Path | None, Option(envvar="XDG_CACHE_HOME", hidden=True)] = None
    no_cache: Annotated[bool, Option("--no-cache", help="Keep no copies.", rich_help_panel=_VAULT)] = False


class PointsOptions(Opening, kw_only=True):
    """List the recovery points of a vault."""

    series: Annotated[str, Option(help="Only this series.")] = ""


class VerifyOptions(Opening, kw_only=True):
    """Prove by reading that a vault's points can be restored."""

    level: Annotated[Level, Option(help="How deep to look.")] = Level.FOOTERS
    days: Annotated[
        int, Option(min=0, help="Scrub and content: read one day's share of a round of so many days. 0: all.")
    ] = 0
    mib_max: Annotated[int, Option(min=0, help="Scrub and content: end after so many MiB were read. 0: all.")] = 0
    workers: Annotated[int | None, Option(help="Processes. Default: one per core.")] = None


class RebuildOptions(Opening, kw_only=True):
    """Read the catalogue of a vault back from what is stored in it."""

    workers: Annotated[int | None, Option(help="Processes. Default: one per core.")] = None


class BackupOptions(Opening, kw_only=True):
    """Back up folders and files, or what a description names, into a vault as one recovery point."""

    paths: Annotated[list[Path] | None, Argument(metavar="[PATH...]", help="What to back up.")] = None
    source: Annotated[
        Path | None,
        Option(metavar="FILE", help="Back up what this JSON file describes: a bucket, a database, a program's output."),
    ] = None
    series: Annotated[str, Option(help="Whose history this is. Default: made of this host and the paths.")] = ""
    include: Annotated[list[str], Option(metavar="PATTERN", help="Only what matches; may be repeated.")] = []
    exclude: Annotated[list[str], Option(metavar="PATTERN", help="Not what matches; may be repeated.")] = []
    one_file_system: Annotated[bool, Option("--one-file-system", help="Leave out other mounts inside.")] = False
    deep: Annotated[bool, Option("--deep", help="Read every file again, whatever its size and time say.")] = False
    workers: Annotated[int | None, Option(help="Processes. Default: one per core.")] = None


class _OfPoint(Opening, kw_only=True):
    """What every command takes that looks at one point."""

    point: Annotated[str, Argument(metavar="POINT", help="An id, its beginning, or: latest.")]
    series: Annotated[str, Option(help="Look for the point in this series only.")] = ""


class LsOptions(_OfPoint, kw_only=True):
    """List a folder of a recovery point, one level deep."""

    path: Annotated[str, Argument(metavar="[PATH]", help="Default: the top.")] = "/"


class CatOptions(_OfPoint, kw_only=True):
    """Write a file of a recovery point to stdout."""

    path: Annotated[str, Argument(metavar="PATH", help="The file.")]


class RestoreOptions(_OfPoint, kw_only=True):
    """Restore a recovery point. A stored /a/b lands at DIR/a/b."""

    to: Annotated[Path | None, Option(metavar="DIR", help="The folder to restore into; it must exist.")] = None
    original: Annotated[bool, Option("--original", help="Restore to where it came from.")] = False
    target: Annotated[
        Path | None,
        Option(metavar="FILE", help="Restore into what this JSON file describes: a bucket, a database, a program."),
    ] = None
    include: Annotated[list[str], Option(metavar="PATTERN", help="Only what matches; may be repeated.")] = []
    exclude: Annotated[list[str], Option(metavar="PATTERN", help="Not what matches; may be repeated.")] = []
    same_name: Annotated[SameName, Option(help="What to do with a file that is there already.")] = SameName.SKIP
    dry_run: Annotated[bool, Option("--dry-run", help="Say what would be written, and write nothing.")] = False
    workers: Annotated[int | None, Option(help="Processes. Default: one per core.")] = None


class PruneOptions(Opening, kw_only=True):
    """Delete the packs that no recovery point needs."""

    source: Annotated[
        str, Option("--from", metavar="PLACE", help="For a replica: the vault that it follows, as with replicate.")
    ] = ""
    dry_run: Annotated[bool, Option("--dry-run", help="Say what would be freed, and change nothing.")] = False
    wait: Annotated[bool, Option("--wait", help="Go on until no session has to be waited for.")] = False
    workers: Annotated[int | None, Option(help="Processes. Default: one per core.")] = None


class KeysOptions(Opening, kw_only=True):
    """List the keys that open a vault."""


class KeyRotateOptions(Opening, kw_only=True):
    """Change the keys that open a vault; no data is rewritten.

    The key at hand is wrapped anew and stays, all others stay but those that are revoked.
    """

    add_key: Annotated[
        str,
        Option(
            help="Let this key open the vault too: keyring:/file, transit:... or pkcs11:...",
            metavar="ADDRESS",
        ),
    ] = ""
    add_key_secret_file: Annotated[
        Path | None,
        Option(
            envvar="BACKUPSITE_ADD_KEY_SECRET_FILE", help="A file with what reaching that key needs.", metavar="FILE"
        ),
    ] = None
    add_key_secret: Annotated[str, Option("--add-key-secret", envvar="BACKUPSITE_ADD_KEY_SECRET", hidden=True)] = ""
    revoke: Annotated[
        list[str], Option(metavar="KEY_ID", help="Let this key open the vault no more; may be repeated.")
    ] = []
    new_recovery_key: Annotated[
        bool, Option("--new-recovery-key", help="Print a new recovery key, and revoke the ones before.")
    ] = False
    new_data_key: Annotated[bool, Option("--new-data-key", help="Encrypt with another data key from now on.")] = False


class KeyProveOptions(Opening, kw_only=True):
    """Prove that a recovery key, or shares of it, open a vault; nothing is changed."""


class KeySplitOptions(Opening, kw_only=True):
    """Print shares of a vault's recovery key: any --needed of them are the key, fewer are nothing."""

    shares: Annotated[int, Option(help="How many shares to make, 2 to 16.")]
    needed: Annotated[int, Option(help="How many of them open the vault, 2 or more.")]


class KeyJoinOptions(Opening, kw_only=True):
    """Print the recovery key that shares of it make (--shares-file)."""


class KeyNewOptions(Struct, kw_only=True):
    """Put a new service key first into a key file; the ones in it stay, and go on opening vaults."""

    path: Annotated[Path, Argument(metavar="FILE", help="The key file; it is made if it isn't there.")]
    json: Annotated[bool, Option("--json", help="One JSON document on stdout.", rich_help_panel=_OUTPUT)] = False
    quiet: Annotated[
        bool, Option("--quiet", "-q", help="Only problems and errors, no progress.", rich_help_panel=_OUTPUT)
    ] = False


class LockOptions(Opening, kw_only=True):
    """Show a vault's lock; with --days, lock every recovery point against deletion by anybody. It can't be undone."""

    days: Annotated[int | None, Option(help="Lock points for so many days from their end; only ever more.")] = None
    confirm: Annotated[str, Option(metavar="TEXT", help="What has to be typed otherwise.")] = ""
    workers: Annotated[int | None, Option(help="Processes. Default: one per core.")] = None


class AuditOptions(Opening, kw_only=True):
    """Prove that what is locked stays locked, and undo what was hidden or covered behind the vault's back."""

    workers: Annotated[int | None, Option(help="Processes. Default: one per core.")] = None


class ExpireOptions(Opening, kw_only=True):
    """Let go of the recovery points that no rule keeps. Any rule that keeps a point keeps it.

    Without a rule, each point stays for the retention that it was made with. With rules that count, days alone keep
    only what --keep-days says.
    """

    series: Annotated[list[str], Option(help="Only this series; may be repeated. Default: all.")] = []
    keep_days: Annotated[int | None, Option(metavar="N", help="Keep points for N days from their completion.")] = None
    keep_last: Annotated[int, Option(metavar="N", help="Keep the newest N points of a series.")] = 0
    keep_daily: Annotated[int, Option(metavar="N", help="Keep the first point of each of the last N days.")] = 0
    keep_weekly: Annotated[int, Option(metavar="N", help="The same for weeks, which begin on Monday.")] = 0
    keep_monthly: Annotated[int, Option(metavar="N", help="The same for months.")] = 0
    keep_yearly: Annotated[int, Option(metavar="N", help="The same for years.")] = 0
    keep_at_least_one: Annotated[
        bool, Option("--keep-at-least-one", help="Keep the newest point, and the newest complete one, in any case.")
    ] = False
    time_zone: Annotated[str, Option(metavar="ZONE", help="Whose days, weeks, months and years they are.")] = "UTC"
    dry_run: Annotated[bool, Option("--dry-run", help="Say for each point why it stays or goes; do nothing.")] = False
    confirm: Annotated[
        bool, Option("--confirm", help="Expire more than a fifth of the points, or go by a clock that jumped.")
    ] = False


class DeleteOptions(Opening, kw_only=True):
    """Delete recovery points for good, whatever the rules say. Held and locked ones stay."""

    points: Annotated[list[str], Argument(metavar="POINT...", help="Ids, their beginnings, or SERIES/ID.")]
    series: Annotated[str, Option(help="Look for the points in this series only.")] = ""
    reason: Annotated[str, Option(metavar="TEXT", help="Why, for whoever looks for them later.")] = ""
    yes: Annotated[bool, Option("--yes", help="Don't ask to type what goes.")] = False
    confirm: Annotated[
        bool, Option("--confirm", help="Delete more than a fifth of the points, or go by a clock that jumped.")
    ] = False


class HoldOptions(_OfPoint, kw_only=True):
    """Keep a recovery point from every expiry and deletion until it is released."""

    reason: Annotated[str, Option(metavar="TEXT", help="Why, for whoever wants to release it.")] = ""


class ReleaseOptions(_OfPoint, kw_only=True):
    """Take all holds of a recovery point away."""


class HoldsOptions(Opening, kw_only=True):
    """List the recovery points that are held."""


class CompactOptions(Opening, kw_only=True):
    """Free the space of what no point needs inside packs that points need; prune deletes the old packs."""

    dead_share: Annotated[
        float, Option(metavar="SHARE", help="Rewrite packs of which this part or more is dead, 0 to 1.")
    ] = 0.3
    mib_max: Annotated[int, Option(min=0, help="Read at most about so many MiB. 0: a tenth of the vault.")] = 0
    dry_run: Annotated[bool, Option("--dry-run", help="Tell what would be rewritten and freed; do nothing.")] = False
    workers: Annotated[int | None, Option(help="Processes. Default: one per core.")] = None


class EraseOptions(Opening, kw_only=True):
    """Delete a whole vault, keys and all. Nothing goes while a lock protects a point."""

    vault_id: Annotated[str, Option(metavar="ID", help="The id of the vault that is meant; told without it.")] = ""
    dry_run: Annotated[bool, Option("--dry-run", help="Say what would go, and delete nothing.")] = False
    workers: Annotated[int | None, Option(help="Processes. Default: one per core.")] = None

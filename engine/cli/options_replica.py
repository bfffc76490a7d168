"""What the commands of replication take. The classes are the commands' signatures; their docstrings are the help."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from engine.cli.options import Common, Opening

_FROM = 'The vault that is followed: a folder, or a JSON file {"url": "s3://bucket/prefix", "endpoint": ..., ...}.'


class LinkOptions(Common, kw_only=True):
    """Make VAULT an empty replica of another vault. Its key file is made when it does not exist.

    A replica opens with a key of its own, and with the recovery key of the vault that it follows. It takes no backups.
    """

    vault: Annotated[str, Argument(metavar="VAULT", help="Where the replica goes: a folder, or s3://bucket/prefix.")]
    source: Annotated[str, Option("--from", metavar="PLACE", help=_FROM)]
    source_key_file: Annotated[
        Path,
        Option(
            "--from-key-file", envvar="BACKUPSITE_FROM_KEY_FILE", metavar="FILE", help="The key file of that vault."
        ),
    ]


class ReplicateOptions(Opening, kw_only=True):
    """Bring the points that a replica lacks, and heal what either vault has found damaged from the other."""

    source: Annotated[str, Option("--from", metavar="PLACE", help=_FROM)]
    workers: Annotated[int | None, Option(help="Packs that pass at once.")] = None


class UnlinkOptions(Opening, kw_only=True):
    """End replication into VAULT for good. Its points stay, and from then on it is pruned and expired by itself."""

    confirm: Annotated[bool, Option("--confirm", help="It can't be resumed: I am sure.")] = False

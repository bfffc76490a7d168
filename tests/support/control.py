"""A small installation for tests: a directory region, a vault, a file source, and a clock that a test can move."""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from accounts.models import Account, User
from accounts.services import SERVICE
from jobs import presence
from policies.models import Plan, Policy, Source
from tests.support.people import T0, join, make_account, make_plan, make_policy, make_source
from vaults.models import Region, Vault
from vaults.services import create_vault, save_region

TREE = {
    "notes.txt": b"hello\n",
    "photos/one.jpg": bytes(range(256)) * 4000,
    "photos/two.jpg": b"\xff" * 300_000,
    "deep/er/and/deeper.txt": b"down here",
    "empty": b"",
}


class Clock:
    """Returns the moment a test says; moves a second on with every call, as time does."""

    def __init__(self, now: dt.datetime = T0) -> None:
        self.now = now

    def __call__(self) -> dt.datetime:
        self.now += dt.timedelta(milliseconds=10)
        return self.now


@dataclass
class Site:
    """Everything a first backup needs. `files` is the folder that the source protects."""

    account: Account
    owner: User
    region: Region
    vault: Vault
    recovery_key: str
    source: Source
    policy: Policy
    plan: Plan
    files: Path


def write_tree(folder: Path, tree: dict[str, bytes] = TREE) -> Path:
    for name, data in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def make_site(folder: Path, *, name: str = "acme") -> Site:
    """Set up in `folder`: store/ is the region, files/ the source. The host's worker counts as seen."""
    files = write_tree(folder / "files")
    account = make_account(name)
    owner = join(account, f"{name}-owner")
    region = Region(name=f"{name}-region", url=str(folder / "store"))
    save_region(region, actor=SERVICE, now=T0)
    vault = Vault(account=account, region=region, name="vault")
    key = create_vault(vault, actor=SERVICE, now=T0)
    roots = {"roots": [str(files)], "include": [], "exclude": [], "one_file_system": False}
    source = make_source(account, region, f"{name}-web", settings=roots)
    policy = make_policy(account)
    plan = make_plan(source, policy, vault)
    presence.seen("w", [source.queue, region.queue], now=T0)
    return Site(account, owner, region, vault, key, source, policy, plan, files)

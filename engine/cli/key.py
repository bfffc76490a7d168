"""keys, key-rotate, key-prove, key-split, key-join, key-new: who can open a vault."""

from functools import singledispatch

from engine.cli import options
from engine.cli.opening import addressed, checking_input, clock, location, opener, recovery_key
from engine.cli.output import FAILED, Answer, Table, WrongUsage, plain
from engine.errors import LastKey, WrongKey
from engine.keyproviders.keyring import Keyring, RecoveryKey
from engine.keyproviders.port import KeyProvider
from engine.keyproviders.shares import split
from engine.keyproviders.spec import open_provider, round_trip
from engine.rotation import Rotated, State, opens, rotate, state
from engine.storage.location import open_storage

_NO_RECOVERY_KEY = "no recovery key: give --recovery-key-file FILE (BACKUPSITE_RECOVERY_KEY) or --shares-file FILE"


@singledispatch
def run(given: object) -> Answer:
    """Run the command whose options were given."""
    raise TypeError(f"no command takes {type(given).__name__}")


@run.register
def _keys(given: options.KeysOptions) -> Answer:
    """List who opens the vault."""
    found = state(opener(given).vault)
    document = {"command": "keys", "state": "complete", **plain(found)}
    return Answer(document, _shown(found), always=True)


@run.register
def _rotate(given: options.KeyRotateOptions) -> Answer:
    """Rotate with the key at hand, the one to add, or both."""
    at_hand = opener(given)
    vault, provider = at_hand.vault, at_hand.provider()
    add: list[KeyProvider] = []
    if given.add_key:
        spec = addressed(given.add_key, secret=given.add_key_secret, secret_file=given.add_key_secret_file)
        add.append(open_provider(spec))
        round_trip(add[0])
    revoke, new = list(given.revoke), None
    if given.new_recovery_key:
        # What is printed may get lost: some other key has to open the vault afterwards.
        if provider.name == RecoveryKey.name and not add:
            raise LastKey("the recovery key can't be replaced with only itself at hand")
        new = RecoveryKey.generate()
        old = [one.key_id for one in state(vault).holders if one.provider == RecoveryKey.name]
        revoke += [key_id for key_id in old if key_id not in revoke]
        provider, add = (provider, add) if provider.name != RecoveryKey.name else (add[0], add[1:])
        add.append(new)
    done = rotate(vault, provider, now=clock(), add=add, revoke=revoke, new_data_key=given.new_data_key)
    return _rotated(done, new)


@run.register
def _prove(given: options.KeyProveOptions) -> Answer:
    """Say yes or no."""
    key = _recovery_key(given)
    proven = opens(open_storage(location(given)), key)
    document = {"command": "key-prove", "state": "complete" if proven else "failed", "opens": proven}
    answer = "opens this vault: keep it where it is" if proven else "does not open this vault"
    return Answer(document, [f"The recovery key {answer}."], code=0 if proven else FAILED, always=True)


@run.register
def _split(given: options.KeySplitOptions) -> Answer:
    """Split the recovery key, after it has opened the vault."""
    key = _proven(given)
    with checking_input():
        shares = split(key, given.needed, given.shares)
    document = {"command": "key-split", "state": "complete", "needed": given.needed, "shares": shares}
    text = [
        f"Any {given.needed} of these {given.shares} shares are the recovery key. Give each to somebody else.",
        *(line for number, share in enumerate(shares, 1) for line in ("", f"Share {number}: {share}")),
        "",
        "They are shown this once and stored nowhere. Older shares of the same key stay good.",
    ]
    return Answer(document, text, always=True)


@run.register
def _join(given: options.KeyJoinOptions) -> Answer:
    """Print the key that the shares make, after it has opened the vault."""
    if not given.shares_file:
        raise WrongUsage("no shares: give --shares-file FILE, with one share a line")
    key = _proven(given)
    document = {"command": "key-join", "state": "complete", "recovery_key": key.text()}
    return Answer(document, [f"Recovery key: {key.text()}"], always=True)


@run.register
def _new(given: options.KeyNewOptions) -> Answer:
    """Put a new key in front of the others in a key file."""
    is_new = not given.path.exists()
    ring = Keyring.generate() if is_new else Keyring.load(given.path).renewed()
    if is_new:
        ring.save(given.path)
    else:
        ring.rewrite(given.path)
    document = {
        "command": "key-new",
        "state": "complete",
        "key_file": str(given.path),
        "key_file_created": is_new,
        "key_id": ring.key_id,
    }
    text = [f"The key {ring.key_id} is the first of {given.path} now: keep a copy of the file apart from the vaults."]
    if not is_new:
        text.append("Run key-rotate for each vault, and revoke the key before it there.")
    return Answer(document, text)


def _recovery_key(given: options.Opening) -> RecoveryKey:
    text = recovery_key(given)
    if not text:
        raise WrongUsage(_NO_RECOVERY_KEY)
    return RecoveryKey.parse(text)


def _proven(given: options.Opening) -> RecoveryKey:
    key = _recovery_key(given)
    if not opens(open_storage(location(given)), key):
        raise WrongKey("the recovery key does not open this vault")
    return key


def _rotated(done: Rotated, new: RecoveryKey | None) -> Answer:
    document = {"command": "key-rotate", **plain(done), "state": "complete", **plain(done.state)}
    text = _shown(done.state)
    if new is not None:
        document["recovery_key"] = new.text()
        text += ["", f"Recovery key: {new.text()}", "", "It is shown this once and stored nowhere: write it down."]
    warnings = []
    for one in done.remaining:
        until = f" before {one.until.isoformat()}" if one.until else ""
        warnings.append(
            f"note: the store does not delete {one.key}{until} ({one.reason}): this program refuses the keys that were "
            "revoked, but whoever has one and that object could read the vault by other means"
        )
    return Answer(document, text, warnings, always=new is not None)


def _shown(found: State) -> list[str | Table]:
    table = Table(["KEY", "ID"])
    table.rows.extend((one.provider, one.key_id) for one in found.holders)
    numbers = ", ".join(map(str, found.epochs))
    return [table, "", f"Data keys: {numbers}. Key sets: {', '.join(found.sets)}."]

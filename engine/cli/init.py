"""init: make a vault."""

from engine.cli.opening import clock, key_file, location
from engine.cli.options import InitOptions
from engine.cli.output import Answer
from engine.keyproviders.keyring import Keyring
from engine.storage.location import open_storage
from engine.vault import Vault


def run(options: InitOptions) -> Answer:
    """Make the vault, and the key file when there is none; the key file is on disk before the vault exists."""
    path = key_file(options)
    storage = open_storage(location(options), create=True)
    is_new = not path.exists()
    ring = Keyring.generate() if is_new else Keyring.load(path)
    if is_new:
        ring.save(path)
    try:
        vault, recovery_key = Vault.create(storage, providers=[ring], now=clock())
    except BaseException:
        if is_new:
            path.unlink()
        raise
    document = {
        "command": "init",
        "state": "complete",
        "vault": options.vault,
        "vault_id": vault.info.vault_id,
        "recovery_key": recovery_key,
        "key_file": str(path),
        "key_file_created": is_new,
    }
    text = [
        f"Vault {vault.info.vault_id} is at {options.vault}.",
        f"The key file {path} {'was made' if is_new else 'is used'}: keep a copy of it apart from the vault.",
        "",
        f"Recovery key: {recovery_key}",
        "",
        "It opens the vault without the key file. It is shown this once and stored nowhere: write it down.",
    ]
    return Answer(document, text, always=True)

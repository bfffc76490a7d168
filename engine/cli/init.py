"""init: make a vault."""

from engine.cli.opening import clock, key_file, location, service_key
from engine.cli.options import InitOptions
from engine.cli.output import Answer
from engine.keyproviders.keyring import Keyring
from engine.keyproviders.spec import open_provider, round_trip
from engine.storage.location import open_storage
from engine.vault import Vault


def run(options: InitOptions) -> Answer:
    """Make the vault; its key is proven before (E34), and a key file that is made for it is on disk before."""
    if not options.key and not options.keyring:
        return _with_key_file(options)
    spec = service_key(options)
    provider = open_provider(spec)
    round_trip(provider)
    storage = open_storage(location(options), create=True)
    vault, recovery_key = Vault.create(storage, providers=[provider], now=clock())
    shown = spec.url if options.key else "the keyring that was given"
    return _answer(options, vault, recovery_key, f"It is opened by {shown}, key {provider.key_id}.", key=shown)


def _with_key_file(options: InitOptions) -> Answer:
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
    line = f"The key file {path} {'was made' if is_new else 'is used'}: keep a copy of it apart from the vault."
    return _answer(options, vault, recovery_key, line, key_file=str(path), key_file_created=is_new)


def _answer(options: InitOptions, vault: Vault, recovery_key: str, line: str, **fields: object) -> Answer:
    document = {
        "command": "init",
        "state": "complete",
        "vault": options.vault,
        "vault_id": vault.info.vault_id,
        "recovery_key": recovery_key,
        **fields,
    }
    text = [
        f"Vault {vault.info.vault_id} is at {options.vault}.",
        line,
        "",
        f"Recovery key: {recovery_key}",
        "",
        "It opens the vault without any other key. It is shown this once and stored nowhere: write it down.",
    ]
    return Answer(document, text, always=True)

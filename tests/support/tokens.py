"""A PKCS#11 token of SoftHSM, made for a test run: a real module, in software."""

import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pkcs11

from engine.keyproviders.spec import KeySpec

MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)


class TokenMissing(Exception):
    """SoftHSM is not installed; the text says what is missing."""


class SoftToken(NamedTuple):
    """A token with its PIN, and how to put keys on it."""

    module: str
    label: str
    pin: str

    def address(self, label: str) -> str:
        return f"pkcs11:{self.module}?token={self.label}&label={label}"

    def spec(self, label: str) -> KeySpec:
        return KeySpec.parse(self.address(label), secret=self.pin)

    def make_key(self, label: str, *, kind: Any = pkcs11.KeyType.AES) -> None:
        """Put a key on the token that never leaves it."""
        library: Any = pkcs11.lib(self.module)
        with library.get_token(token_label=self.label).open(rw=True, user_pin=self.pin) as session:
            bits = 192 if kind is pkcs11.KeyType.DES3 else 256
            session.generate_key(kind, bits, label=label, store=True)

    def attribute(self, label: str, attribute: Any) -> Any:
        """Return what the token says of a key. Raises what the library raises."""
        library: Any = pkcs11.lib(self.module)
        with library.get_token(token_label=self.label).open(user_pin=self.pin) as session:
            return session.get_key(object_class=pkcs11.ObjectClass.SECRET_KEY, label=label)[attribute]


def make(folder: Path) -> SoftToken:
    """Make a token below `folder`; from now on this process and its children know no other. Raises TokenMissing."""
    module = next((path for path in MODULES if Path(path).exists()), None)
    if module is None or shutil.which("softhsm2-util") is None:
        raise TokenMissing("softhsm2 is not installed (Debian: softhsm2)")
    (folder / "tokens").mkdir()
    config = folder / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(config)
    token = SoftToken(module, f"backup-{secrets.token_hex(4)}", secrets.token_hex(4))
    command = ["softhsm2-util", "--init-token", "--free", "--label", token.label]
    subprocess.run([*command, "--so-pin", secrets.token_hex(4), "--pin", token.pin], check=True, capture_output=True)
    return token

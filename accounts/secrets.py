"""Encrypt credentials for the database: AES-256-GCM, bound to the row they belong to.

A sealed text is `v1.<key id>.<base64 of nonce and ciphertext>`. The key id is the beginning of the key's digest,
so that keys can be rotated: the first configured key seals, every configured key opens. The context (table and row id)
is authenticated, so that a sealed text copied into another row does not open there.
"""

import base64
import hashlib
import json
import os
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

NONCE_BYTES = 12


class SecretUnreadable(Exception):
    """The sealed text was made with a key that is not configured, for another row, or was changed."""


def _keys() -> dict[str, bytes]:
    keys = {}
    for text in settings.FIELD_KEYS:
        try:
            key = bytes.fromhex(text.strip())
        except ValueError:
            key = b""
        if len(key) != 32:
            raise ImproperlyConfigured("BACKUPSITE_FIELD_KEYS must be hex of 32 bytes each, separated by commas.")
        keys[hashlib.sha256(key).hexdigest()[:8]] = key
    return keys


def seal(values: dict[str, Any], *, context: str) -> str:
    """Return `values` encrypted for the row named by `context`; empty values become an empty text."""
    if not values:
        return ""
    key_id, key = next(iter(_keys().items()))
    nonce = os.urandom(NONCE_BYTES)
    stored = nonce + AESGCM(key).encrypt(nonce, json.dumps(values).encode(), context.encode())
    return f"v1.{key_id}.{base64.b64encode(stored).decode()}"


def unseal(sealed: str, *, context: str) -> dict[str, Any]:
    """Return what `seal` was given. Raises SecretUnreadable."""
    if not sealed:
        return {}
    try:
        version, key_id, text = sealed.split(".")
        stored = base64.b64decode(text, validate=True)
        key = _keys()[key_id]
        # Bits that base64 ignores at the end are a change too.
        if version != "v1" or base64.b64encode(stored).decode() != text:
            raise ValueError(version)
        values: dict[str, Any] = json.loads(
            AESGCM(key).decrypt(stored[:NONCE_BYTES], stored[NONCE_BYTES:], context.encode())
        )
    except (ValueError, KeyError, InvalidTag) as error:
        raise SecretUnreadable(
            f"The credentials of {context} cannot be decrypted. Add the key they were stored with to "
            "BACKUPSITE_FIELD_KEYS, or enter them again."
        ) from error
    return values

"""The key-provider port: who can wrap a vault's root key."""

from typing import Protocol


class KeyProvider(Protocol):
    """Wraps and unwraps a 32-byte root. `name` and `key_id` are stored beside the wrap to find it again."""

    name: str
    key_id: str

    def wrap(self, secret: bytes, *, context: bytes) -> bytes:
        """Return `secret` encrypted under the provider's key and bound to `context`."""
        ...

    def unwrap(self, wrapped: bytes, *, context: bytes) -> bytes:
        """Return the secret. Raises WrongKey."""
        ...

"""Generated data with fixed seeds: files of random bytes, and of words as a text has them."""

from pathlib import Path

import numpy as np

_BLOCK_BYTES = 64 << 20
_WORDS, _LETTERS_MAX = 30_000, 15
_TABLE = 1 << 16


def random_file(path: Path, size: int, *, seed: int = 1) -> None:
    """Write bytes that no program can compress."""
    rng = np.random.default_rng(seed)
    with path.open("wb") as file:
        for at in range(0, size, _BLOCK_BYTES):
            file.write(rng.bytes(min(_BLOCK_BYTES, size - at)))


def text_file(path: Path, size: int, *, seed: int = 1) -> None:
    """Write words of a language that is made up, some frequent and most rare, as texts have them (Zipf's law)."""
    rng = np.random.default_rng(seed)
    table = _words(rng)
    left = size
    with path.open("wb") as file:
        while left > 0:
            words = min(_BLOCK_BYTES // 16, left // 4 + 1)
            letters = table[rng.integers(0, _TABLE, words, dtype=np.uint16)].reshape(-1)
            block = letters[letters != 0][:left].tobytes()
            file.write(block)
            left -= len(block)


def _words(rng: np.random.Generator) -> np.ndarray:
    """Return words in rows of 16 bytes, filled up with zeros, each as often as it is frequent."""
    alphabet = np.frombuffer(b"eeeeeetttttaaaaooooiiiinnnnsssshhhrrrdddlllcuummwfgypbvk", np.uint8)
    lengths = np.minimum(rng.poisson(4, _WORDS) + 1, _LETTERS_MAX - 1)
    rows = alphabet[rng.integers(0, len(alphabet), (_WORDS, _LETTERS_MAX + 1))]
    place = np.arange(_LETTERS_MAX + 1)
    rows = np.where(place < lengths[:, None], rows, 0)
    ends = np.where(rng.random(_WORDS) < 0.08, ord("\n"), ord(" "))
    rows = np.where(place == lengths[:, None], ends[:, None], rows).astype(np.uint8)
    weights = 1 / np.arange(1, _WORDS + 1)
    return np.asarray(rows[rng.choice(_WORDS, _TABLE, p=weights / weights.sum())])

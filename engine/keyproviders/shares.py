"""The recovery key in shares (SLIP-39): any m of n people together have it, fewer have nothing."""

from collections.abc import Sequence

from shamir_mnemonic import MnemonicError, combine_mnemonics, generate_mnemonics
from shamir_mnemonic.share import Share
from shamir_mnemonic.wordlist import WORDLIST

from engine.errors import BadKeyFile
from engine.keyproviders.keyring import RecoveryKey

MOST = 16
WORDS = 33


def split(recovery_key: RecoveryKey, m: int, n: int) -> list[str]:
    """Return n shares of 33 words each, any m of which are the key. Raises ValueError.

    Each call draws another set; shares of different sets don't fit together, and an older set stays good.
    """
    if not 2 <= m <= n <= MOST:
        raise ValueError(f"{m} of {n} shares can't be made: give 2 to {MOST} shares, and let at least 2 be needed")
    shares: list[str] = generate_mnemonics(1, [(m, n)], recovery_key.raw())[0]
    return shares


def join(shares: Sequence[str]) -> RecoveryKey:
    """Return the key that `split` was given; case, spaces and order don't matter. Raises BadKeyFile.

    More shares than needed may be given; all of them have to fit.
    """
    read = [_read(number, text) for number, text in enumerate(shares, 1)]
    if not read:
        raise BadKeyFile("no share was given")
    first = read[0]
    for number, share in enumerate(read[1:], 2):
        if share.group_parameters() != first.group_parameters():
            raise BadKeyFile(f"share {number} is of another set than share 1: take shares that were made together")
    chosen = list(dict.fromkeys(read))
    least = first.member_threshold
    if len(chosen) < least:
        twice = ", one of them twice" if len(chosen) < len(read) else ""
        raise BadKeyFile(f"{len(chosen)} of the {least} shares that are needed were given{twice}: add more")
    try:
        # The library takes exactly as many as are needed: each one beyond them takes a turn, so that all are proven.
        keys = {_combined([*chosen[: least - 1], one]) for one in chosen[least - 1 :]}
    except MnemonicError:
        keys = set()
    if len(keys) != 1:
        raise BadKeyFile("these shares don't fit together: one of them was changed or is of another set")
    return RecoveryKey(keys.pop())


def _combined(shares: Sequence[Share]) -> bytes:
    key: bytes = combine_mnemonics([share.mnemonic() for share in shares])
    return key


def _read(number: int, text: str) -> Share:
    words = text.lower().split()
    for place, word in enumerate(words, 1):
        if word not in WORDLIST:
            raise BadKeyFile(f"share {number} is mistyped: its word {place} is not one that a share can have")
    if len(words) != WORDS:
        raise BadKeyFile(f"share {number} has {len(words)} words, not {WORDS}")
    try:
        return Share.from_mnemonic(" ".join(words))
    except MnemonicError:
        raise BadKeyFile(
            f"share {number} is mistyped: its checksum does not fit; a word is wrong or in another place"
        ) from None

"""Content-defined cut points (vault-format, section 3). Cuts are part of the format: never change them.

FastCDC with min = avg / 4, max = 4 avg and normalisation level 2, restarted at every file and at every
PART_BYTES of a file, so that the parts of a big file can be cut by different workers.
"""

from collections.abc import Callable, Iterator

from pyfastcdc import FastCDC

PROFILES = {"general": 512 << 10, "database": 128 << 10, "media": 2 << 20}
PART_BYTES = 256 << 20
CHUNK_BYTES_MAX = 4 * max(PROFILES.values())
_WINDOW_BYTES = 16 << 20


class Chunker:
    """Cuts one run of bytes at a time; keeps one read window, reused. One per thread."""

    def __init__(self, profile: str, seed: int) -> None:
        avg = PROFILES[profile]
        self.whole_below = avg
        self._max = 4 * avg
        self._cdc = FastCDC(avg, min_size=avg // 4, max_size=4 * avg, normalized_chunking=2, seed=seed)
        self._window = memoryview(b"")

    def lengths(self, data: memoryview, *, final: bool) -> list[int]:
        """Return the lengths of the chunks that start `data`; what is left over needs more bytes.

        With `final` they cover all of `data`. A cut never depends on how the stream was split: a chunk is given
        only when the longest chunk would have fitted, or at the end.
        """
        lengths: list[int] = []
        at = 0
        for chunk in self._cdc.cut_buf(data):
            if not final and len(data) - at < self._max:
                break
            lengths.append(chunk.length)
            at += chunk.length
        return lengths

    def windows(self, read: Callable[[memoryview], int]) -> Iterator[list[memoryview]]:
        """Yield the chunks of what `read(view) -> count` gives until 0, a window at a time.

        The views are valid until the next window is asked for.
        """
        if not self._window:
            self._window = memoryview(bytearray(_WINDOW_BYTES))
        window, filled, final = self._window, 0, False
        while not final:
            count = read(window[filled:])
            filled += count
            if filled < len(window) and count:
                continue
            final = not count
            chunks, at = [], 0
            for length in self.lengths(window[:filled], final=final):
                chunks.append(window[at : at + length])
                at += length
            if chunks:
                yield chunks
            left = filled - at
            window[:left] = window[at:filled]
            filled = left

"""Feed one decoder with what atheris thinks up: python -m tests.fuzz NAME [libFuzzer's options, such as -runs=100000].

Ends with an error at the first input that raises anything but an engine error, hangs or takes much memory, and leaves
that input in a file. `python -m tests.fuzz` lists the names. Needs `python -m pip install atheris`.
"""

import sys
import tempfile
from pathlib import Path

from engine.errors import EngineError
from tests.fuzz.samples import Samples
from tests.fuzz.targets import TARGETS

_LIMITS = ["-rss_limit_mb=1024", "-timeout=10", "-max_len=4096"]


def main(arguments: list[str]) -> str | None:
    """Fuzz until an input is found or the options say enough; return what to tell otherwise."""
    if not arguments or arguments[0] not in TARGETS:
        return "\n".join(["give one of these names:", *TARGETS])
    try:
        import atheris  # type: ignore[import-untyped] # ships no types; an option that nothing else needs
    except ImportError:
        return "the fuzzer is not installed: python -m pip install atheris"
    target = TARGETS[arguments[0]]
    with tempfile.TemporaryDirectory() as name:
        samples = Samples(Path(name) / "home")
        corpus = Path(name) / "corpus"
        corpus.mkdir()
        (corpus / "good").write_bytes(target.good(samples))

        def feed(data: bytes) -> None:
            try:
                target.run(samples, data)
            except EngineError:
                pass  # the only thing that a decoder may raise

        atheris.instrument_all()
        atheris.Setup([sys.argv[0], *_LIMITS, *arguments[1:], str(corpus)], feed)
        atheris.Fuzz()
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

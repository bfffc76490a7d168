"""How a process asks for memory."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from engine import allocation

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        [bytearray(8 << 20) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

allocation.keep_freed()
faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc alone")
def test_a_buffer_that_was_freed_serves_again_without_a_page_being_cleared() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20 * 4 * (8 << 20) // 4096 // 10

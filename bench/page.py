"""docs/benchmarks.md: one section for each program here; each rewrites its own and leaves the others."""

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def write_section(name: str, text: str, *, page: Path = PAGE) -> None:
    """Put `text` (which begins with its heading) in the place of the section `name`, or at the end."""
    mark = f"<!-- {name} -->"
    section = f"{mark}\n{text.strip()}\n"
    old = page.read_text() if page.exists() else ""
    found = re.search(rf"{re.escape(mark)}\n.*?(?=<!-- |\Z)", old, re.DOTALL)
    if found:
        new = old[: found.start()] + section + "\n" + old[found.end() :]
    else:
        new = old.rstrip() + "\n\n" + section if old else section
    page.write_text(new.strip() + "\n")

"""ls: list a folder of a point."""

import os

from engine.browse import clean_path
from engine.cli.looking import entry_fields, entry_line, open_point
from engine.cli.options import LsOptions
from engine.cli.output import Answer
from engine.entries import Kind, sort_key


def run(options: LsOptions) -> Answer:
    """List what is directly in the folder; anything else is listed itself."""
    browser = open_point(options, point=options.point, series=options.series)
    path = clean_path(os.fsencode(options.path))
    found = next(browser.entries(sort_key(path)), None) if path else None
    is_other = found is not None and found.path == path and found.kind != Kind.DIRECTORY
    entries = [found] if is_other and found is not None else browser.folder(path)
    body = browser.root.body
    if options.json:
        listed = [entry_fields(entry) for entry in entries]
        document = {"command": "ls", "state": "complete", "point": body.point, "series": body.series}
        return Answer({**document, "entries": listed})
    return Answer({}, (entry_line(entry) for entry in entries), always=True)

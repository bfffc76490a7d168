"""cat: write a file of a point to stdout."""

import base64
import os
import sys

from engine.browse import clean_path
from engine.cli.looking import entry_fields, open_point
from engine.cli.options import CatOptions
from engine.cli.output import Answer


def run(options: CatOptions) -> Answer:
    """Stream the file; every piece is checked before it is written. With --json it goes into the document."""
    browser = open_point(options, point=options.point, series=options.series)
    entry = browser.entry(clean_path(os.fsencode(options.path)))
    if options.json:
        content = base64.b64encode(b"".join(browser.read(entry))).decode()
        body = browser.root.body
        document = {"command": "cat", "state": "complete", "point": body.point, "series": body.series}
        return Answer({**document, "entry": entry_fields(entry), "content_base64": content})
    for piece in browser.read(entry):
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    return Answer({})

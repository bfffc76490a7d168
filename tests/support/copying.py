"""A backup and restore without a vault: what a source yields goes straight into a target."""

from engine.entries import Entry, Kind, Problem
from engine.sources.port import Source
from engine.targets.port import Target

_PIECE = 1 << 16


def copy(source: Source, target: Target, *, small: int = 0) -> list[Problem]:
    """Copy everything; files of at most `small` bytes by the ports' fast paths. Return all problems."""
    problems: list[Problem] = []
    folders: list[Entry] = []
    first: dict[tuple[int, int], bytes] = {}
    for walked in source.walk():
        if isinstance(walked, Problem):
            problems.append(walked)
            continue
        if walked is None:
            continue
        shared = (walked.device, walked.inode)
        if walked.kind != Kind.DIRECTORY and walked.links > 1 and shared in first:
            problems += target.link(walked, first[shared])
        elif walked.kind == Kind.FILE:
            problems += _copy_file(source, target, walked, small=small)
        else:
            entry = source.fill(walked)
            problems += [entry] if isinstance(entry, Problem) else target.make(entry)
            if isinstance(entry, Entry) and entry.kind == Kind.DIRECTORY:
                folders.append(entry)
        first.setdefault(shared, walked.path)
    for entry in reversed(folders):
        problems += target.finish(entry)
    target.flush()
    return problems


def _copy_file(source: Source, target: Target, walked: Entry, *, small: int) -> list[Problem]:
    if walked.size <= small:
        whole = source.read_small(walked, small)
        if isinstance(whole, Problem):
            return [whole]
        if whole is not None:
            return target.write_small(*whole)
    reader = source.open(walked)
    if isinstance(reader, Problem):
        return [reader]
    with reader:
        writer = target.create(reader.entry)
        buffer = memoryview(bytearray(_PIECE))
        for span in reader.spans(0, reader.entry.size):
            at = span.offset
            while not span.hole and at < span.offset + span.length:
                count = reader.readinto(buffer[: span.offset + span.length - at], at)
                if not count:
                    break
                writer.write(buffer[:count], at)
                at += count
        return writer.commit()

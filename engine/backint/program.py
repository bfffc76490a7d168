"""The program as HANA calls it: arguments, lists in and out, the log, signals, the exit code."""

import argparse
import contextlib
import logging
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import BinaryIO

import engine
from engine.backint import functions, parameters
from engine.backint.crew import Done
from engine.backint.directives import Directive, line, read, version
from engine.backint.functions import Agent, Asked
from engine.backint.parameters import BadParameters, Parameters
from engine.cli.stopping import Stopping
from engine.errors import EngineError

WELL, FAILED, USAGE = 0, 1, 2
BACKINT = "backint 1.50"
TOOL = f"backupsite {engine.__version__}"
FUNCTIONS = {
    "backup": {"PIPE": 1, "FILE": 1},
    "restore": {"EBID": 2, "NULL": 1},
    "inquire": {"EBID": 1, "NULL": 0},
    "delete": {"EBID": 2},
}
_log = logging.getLogger("engine.backint")


def main(arguments: Sequence[str]) -> int:
    """Answer one call and return the exit code: 0 only when every object went well."""
    try:
        given, strange = _parser().parse_known_args(arguments)
    except SystemExit as error:
        return USAGE if error.code else WELL
    if given.v:
        sys.stdout.write(f'"{BACKINT}" "{TOOL}"\n')
        return WELL
    if not given.u or not given.f:
        sys.stderr.write("hdbbackint: -u <DB@SID> and -f backup|restore|inquire|delete are needed\n")
        return USAGE
    with contextlib.ExitStack() as stack:
        try:
            data = Path(given.i).read_bytes() if given.i else sys.stdin.buffer.read()
            out: BinaryIO = stack.enter_context(open(given.o, "wb")) if given.o else sys.stdout.buffer
        except OSError as error:
            sys.stderr.write(f"hdbbackint: {error.filename}: {error.strerror}\n")
            return FAILED
        stopping = stack.enter_context(Stopping())
        return _answer(given, strange, list(read(data)), out, stopping)


def _answer(
    given: argparse.Namespace, strange: list[str], lines: list[Directive], out: BinaryIO, stopping: Stopping
) -> int:
    handler = _begin_log("")
    told = next((one.words for one in lines if one.keyword == "SOFTWAREID" and one.words), [BACKINT])
    asked = Asked(given.f, given.u, given.l or "", given.s or "", version(told[0]))
    wanted: Parameters | None = None
    why = ""
    try:
        if not given.p:
            raise BadParameters("no parameter file was given (-p): set HANA's data_backup_parameter_file and the like")
        wanted = parameters.load(Path(given.p))
        if wanted.log_file:
            handler = _begin_log(wanted.log_file, before=handler)
    except (EngineError, OSError) as error:
        why = str(error)
    _log.info("%s for %s begins: %d lines", asked.function, asked.database, len(lines))
    for word in strange:
        _log.warning("the argument %r is not known to this agent", word)
    well = True
    try:
        _write(out, line("SOFTWAREID", told[0], TOOL))
        with contextlib.closing(_answers(asked, lines, wanted, why, stopping)) as answers:
            for done in answers:
                well &= done.is_well
                if done.note:
                    _log.log(logging.INFO if done.is_well else logging.ERROR, "%s", done.note)
                _write(out, done.line)
    except OSError as error:
        _log.error("the output can't be written, so everything else was stopped: %s", error.strerror)
        well = False
    _log.info("%s for %s ends %s", asked.function, asked.database, "well" if well else "with errors")
    return WELL if well else FAILED


def _answers(
    asked: Asked, lines: list[Directive], wanted: Parameters | None, why: str, stopping: Stopping
) -> Generator[Done, None, None]:
    """Yield an answer for each directive; malformed ones are answered first, so that they can't be overlooked."""
    needed = FUNCTIONS[asked.function]
    objects = []
    for one in lines:
        if one.keyword == "SOFTWAREID":
            continue
        if wrong := _wrong(one, needed):
            yield Done(line("ERROR", *one.words[:2]), False, f"#{one.keyword}: {wrong}")
        else:
            objects.append(one)
    if wanted is None:
        yield from functions.refuse(asked, objects, why)
        return
    answered = False
    try:
        agent = Agent(asked, wanted, stopping.check)
        for done in agent.answer(objects):
            answered = True
            yield done
    except EngineError as error:
        if answered:
            _log.error("%s", error)
            yield Done(line("ERROR"), False)
        else:
            yield from functions.refuse(asked, objects, str(error))


def _wrong(one: Directive, needed: dict[str, int]) -> str:
    """Return what is wrong with a directive, nothing when all is well."""
    if one.wrong:
        return one.wrong
    if one.keyword not in needed:
        return "it has no place in this function"
    if len([word for word in one.words[: needed[one.keyword]] if word]) < needed[one.keyword]:
        return "a parameter is missing"
    return ""


def _write(out: BinaryIO, text: str) -> None:
    """Write a line at once: HANA reads along."""
    out.write(text.encode() + b"\n")
    out.flush()


def _begin_log(path: str, *, before: logging.Handler | None = None) -> logging.Handler:
    """Let the log go to a file, or to the standard error. Raises OSError."""
    handler = logging.FileHandler(path, encoding="utf-8") if path else logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(message)s"))
    if before is not None:
        _log.removeHandler(before)
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.propagate = False
    return handler


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hdbbackint", description="Backint agent for SAP HANA", allow_abbrev=False)
    parser.add_argument("-u", metavar="DB@SID", help="the database")
    parser.add_argument("-f", choices=sorted(FUNCTIONS), help="the function")
    parser.add_argument("-i", metavar="FILE", help="the input list; standard input without it")
    parser.add_argument("-o", metavar="FILE", help="the output list; standard output without it")
    parser.add_argument("-p", metavar="FILE", help="the parameter file")
    parser.add_argument("-s", metavar="ID", help="HANA's id of the backup")
    parser.add_argument("-c", metavar="COUNT", help="how many objects the backup has")
    parser.add_argument("-l", metavar="LEVEL", help="COMPLETE, DIFFERENTIAL, INCREMENTAL or LOG")
    parser.add_argument("-v", action="store_true", help="show the version and end")
    return parser

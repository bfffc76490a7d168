"""The program: which commands there are, and what becomes of their answers and errors (exit codes in docs/cli.md)."""

import importlib
import inspect
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import typer
from msgspec import NODEFAULT
from msgspec.structs import FieldInfo, fields

from engine.cli import options, options_replica
from engine.cli.output import FAILED, USAGE, Answer, WrongUsage, show, warn, write_json
from engine.errors import EngineError

_COMMANDS: dict[str, tuple[type[Any], str]] = {
    "init": (options.InitOptions, "init"),
    "backup": (options.BackupOptions, "backup"),
    "points": (options.PointsOptions, "points"),
    "ls": (options.LsOptions, "ls"),
    "cat": (options.CatOptions, "cat"),
    "restore": (options.RestoreOptions, "restore"),
    "verify": (options.VerifyOptions, "verify"),
    "rebuild": (options.RebuildOptions, "rebuild"),
    "prune": (options.PruneOptions, "prune"),
    "keys": (options.KeysOptions, "key"),
    "key-rotate": (options.KeyRotateOptions, "key"),
    "key-prove": (options.KeyProveOptions, "key"),
    "key-split": (options.KeySplitOptions, "key"),
    "key-join": (options.KeyJoinOptions, "key"),
    "key-new": (options.KeyNewOptions, "key"),
    "lock": (options.LockOptions, "lock"),
    "audit": (options.AuditOptions, "audit"),
    "expire": (options.ExpireOptions, "expire"),
    "delete": (options.DeleteOptions, "delete"),
    "hold": (options.HoldOptions, "hold"),
    "release": (options.ReleaseOptions, "hold"),
    "holds": (options.HoldsOptions, "hold"),
    "compact": (options.CompactOptions, "compact"),
    "erase": (options.EraseOptions, "erase"),
    "link": (options_replica.LinkOptions, "replica"),
    "replicate": (options_replica.ReplicateOptions, "replica"),
    "unlink": (options_replica.UnlinkOptions, "replica"),
}
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def main() -> int:
    """Run the command line of this process and return its exit code."""
    as_json = "--json" in sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # no name may end a listing that the terminal can't show
    try:
        code = _app(sys.argv[1:])(prog_name="python -m engine", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.Exit as ending:
        return ending.exit_code
    except typer.Abort:
        return FAILED
    except typer.TyperException as error:
        if as_json:
            return _fail("usage", error.format_message(), as_json=True, code=USAGE)
        error.show()  # type: ignore[attr-defined] # usage errors have it: they name the command and its help
        return error.exit_code


def run(module: str, given: Any) -> int:
    """Run one command and return its exit code; no error of input or engine shows a traceback."""
    try:
        answer: Answer = importlib.import_module(module).run(given)
        show(answer, as_json=given.json, quiet=given.quiet)
        return answer.code
    except WrongUsage as error:
        return _fail("usage", str(error), as_json=given.json, code=USAGE)
    except EngineError as error:
        return _fail(_code(error), str(error), as_json=given.json)
    except KeyboardInterrupt:
        return _fail("canceled", "canceled", as_json=given.json)
    except BrokenPipeError:
        # The reader went away. What is still buffered has nowhere to go, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return _fail("system", str(error), as_json=given.json)
    except Exception as error:
        traceback.print_exc()
        return _fail("internal", f"{type(error).__name__}: {error}", as_json=given.json)


def _app(arguments: Sequence[str]) -> typer.Typer:
    """Return the program with the command that is asked for first: making all of them takes longer than most runs."""
    app = typer.Typer(
        help="Back up into a vault, look into it, restore from it.",
        epilog="Exit codes: 0 complete, 3 partially complete, 1 failed, 2 wrong usage.",
        add_completion=False,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(lambda: None)  # with a single command, its name is asked for nevertheless
    for name in arguments[:1] if arguments and arguments[0] in _COMMANDS else _COMMANDS:
        kind, module = _COMMANDS[name]
        app.command(name)(_function(kind, f"engine.cli.{module}"))
    return app


def _function(kind: type[Any], module: str) -> Callable[..., int]:
    """Return a function with the fields of `kind` as its parameters. The command's module is loaded when it runs."""

    def command(**given: Any) -> int:
        return run(module, kind(**given))

    hints = get_type_hints(kind, include_extras=True)
    parameters = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=_default(one), annotation=hints[one.name])
        for one in fields(kind)
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # inspect.signature reads it
    command.__annotations__ = {one.name: hints[one.name] for one in fields(kind)}
    command.__doc__ = kind.__doc__
    return command


def _default(one: FieldInfo) -> Any:
    if one.default_factory is not NODEFAULT:
        return one.default_factory()
    return inspect.Parameter.empty if one.default is NODEFAULT else one.default


def _code(error: EngineError) -> str:
    """Return an error's stable name: WrongKey is wrong_key."""
    return _CAMEL.sub("_", type(error).__name__).strip("_").lower()


def _fail(name: str, message: str, *, as_json: bool, code: int = FAILED) -> int:
    if as_json:
        write_json({"error": {"code": name, "message": message}})
    else:
        warn(f"error: {message}")
    return code

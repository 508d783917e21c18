"""The command line: its commands, loaded one at a time when they are used, and its exit codes."""

import errno
import io
import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from consumer.commands.output import print_error
from consumer.errors import ConfigurationError, ConsumerError

COMMANDS = {
    "run": "Consume: apply events until SIGTERM or SIGINT.",
    "ticker": "Emit a tick for every conversation whose deadline has passed.",
    "outbox": "Publish committed transitions.",
    "migrate": "The database's schema: up (default), status, sql, citus.",
    "topics": "Create the topics that are missing.",
    "publish": "Publish events from files.",
    "conversation": "One conversation: show, history, why, rebuild, forget.",
    "offsets": "Where the partitions go on: show, set.",
    "dead-letters": "Records that hold no valid event: list, show, replay.",
    "what-if": "What would have happened under another policy.",
    "report": "What happened in a period: conversations, races.",
    "prune": "Remove history older than a horizon.",
    "top": "Watch replicas: rate, lag, conflicts, retries, dead letters.",
    "healthcheck": "Ask the replica or ticker that runs here whether it is ready.",
    "doctor": "Check that everything is in place, and say what to do where it is not.",
    "config": "List every setting: its value, where the value comes from, what it does.",
}
"""Name -> what `--help` says. The module of the same name has the command as `app`."""


class LazyGroup(TyperGroup):
    """Imports a command when it is used: `--help` and completion need none of them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, text in COMMANDS.items():
            self.add_command(TyperCommand(name=name, help=text))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in COMMANDS:
            module = import_module(f"consumer.commands.{args[0].replace('-', '_')}")
            self.add_command(typer.main.get_command(module.app), args[0])
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Keeps customer conversations right while many writers touch them at once.",
)


def print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - takes as long as half of `--help`

        typer.echo(version("conversation-consumer"))
        raise typer.Exit


@app.callback()
def root(
    _: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Keeps customer conversations right while many writers touch them at once."""


def prepare_streams() -> None:
    """A standard stream that is closed, or of an encoding that lacks a character, is no error."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123 - open for as long as the process lasts
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def write_no_more() -> None:
    """What is still buffered for standard output at exit goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 a usage error (options, settings, topics, schema)."""
    prepare_streams()
    try:
        app()
    except BrokenPipeError:
        # Whoever read the output has seen enough, such as `head`.
        write_no_more()
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        write_no_more()
        print_error(ConsumerError(f"nothing more can be written: {error.strerror}"))
        sys.exit(1)
    except ConfigurationError as error:
        print_error(error)
        sys.exit(2)
    except ConsumerError as error:
        print_error(error)
        sys.exit(1)

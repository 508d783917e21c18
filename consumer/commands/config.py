"""`config`: every setting, in force or by default."""

from typing import Annotated

import typer

from consumer import settings as configuration
from consumer.commands.output import AsJson, print_json, print_table

app = typer.Typer(add_completion=False)


@app.command()
def config(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of the documentation: names and defaults.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List every setting: its value, where the value comes from, what it does. Secrets are masked."""
    if markdown:
        typer.echo(configuration.markdown())
        return
    values = configuration.in_force()
    if as_json:
        print_json([value._asdict() for value in values])
        return
    print_table(None, ("variable", "value", "source", "meaning"), values)

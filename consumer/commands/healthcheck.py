"""`healthcheck`: what a container engine asks inside the container of a replica or a ticker.

It runs every few seconds beside the process that it asks, so it imports neither a driver nor the model of the settings.
"""

import http.client
from typing import Annotated

import typer

from consumer.errors import UnavailableError

TIMEOUT_SECONDS = 5.0
LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - who listens everywhere is asked here
app = typer.Typer(add_completion=False)


@app.command()
def healthcheck(
    live: Annotated[bool, typer.Option("--live", help="Ask whether it is alive, not whether it is ready.")] = False,
    host: Annotated[str, typer.Option(envvar="CONSUMER_HTTP__HOST", help="Where it listens.")] = "0.0.0.0",  # noqa: S104
    port: Annotated[
        int,
        typer.Option(envvar="CONSUMER_HTTP__PORT", min=1, max=65535, help="Its port; a free one is unknown here."),
    ] = 8080,
) -> None:
    """Ask the replica or ticker that runs here whether it is ready. Exit code 1, and why, if it is not."""
    status, text = ask(LOOPBACK.get(host, host), port, "/livez" if live else "/readyz")
    typer.echo(text, nl=False)
    raise typer.Exit(0 if status == http.HTTPStatus.OK else 1)


def ask(host: str, port: int, path: str) -> tuple[int, str]:
    """(status, body) of a page. Raises `UnavailableError` where nobody answers in HTTP."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(f"no answer from http://{host}:{port}{path}: {error or type(error).__name__}") from error
    finally:
        connection.close()

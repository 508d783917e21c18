"""`healthcheck`: what a container engine asks inside the container of a replica or a ticker. It imports no driver."""

import http.client
from typing import Annotated

import typer

from consumer import settings as configuration
from consumer.errors import ConfigurationError, UnavailableError

TIMEOUT_SECONDS = 5.0
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - who listens everywhere is asked here
app = typer.Typer(add_completion=False)


@app.command()
def healthcheck(
    live: Annotated[bool, typer.Option("--live", help="Ask whether it is alive, not whether it is ready.")] = False,
) -> None:
    """Ask the replica or ticker that runs here whether it is ready. Exit code 1, and why, if it is not."""
    settings = configuration.load().http
    if settings.port == 0:
        raise ConfigurationError("CONSUMER_HTTP__PORT=0: which port it took is unknown here; give it one")
    status, text = ask(LOOPBACK.get(settings.host, settings.host), settings.port, "/livez" if live else "/readyz")
    typer.echo(text, nl=False)
    raise typer.Exit(0 if status == http.HTTPStatus.OK else 1)


def ask(host: str, port: int, path: str) -> tuple[int, str]:
    """(status, body) of a page. Raises `UnavailableError` where nobody answers in HTTP."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except ConnectionRefusedError as error:
        raise UnavailableError(
            f"no answer from http://{host}:{port}{path}: nobody listens there: check CONSUMER_HTTP__PORT, and whether "
            "the process runs"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(f"no answer from http://{host}:{port}{path}: {error or type(error).__name__}") from error
    finally:
        connection.close()

"""`make services`: Kafka and PostgreSQL to play with, until Ctrl-C."""

import os
import signal
import sys
from collections.abc import Sequence

from tests.stack.process import DevstackError, Server, say
from tests.stack.services import Services, services

TEXT = """
{origin}

In another terminal:

    . .venv/bin/activate
    export CONSUMER_KAFKA__BOOTSTRAP_SERVERS={kafka}
    export CONSUMER_DATABASE__URL={postgres}
    conversation-consumer migrate
    conversation-consumer topics
    conversation-consumer run

They run, with their data, until Ctrl-C.
"""


def main() -> int:
    """The exit code."""
    # A shell starts background processes with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        say("starting Kafka and PostgreSQL")
        with services() as found:
            print(text(found), flush=True)  # noqa: T201 - what the command is for
            watch(found.servers)
    except KeyboardInterrupt:
        return 0
    except DevstackError as error:
        say(f"error: {error}")
        return 1
    return 0


def watch(servers: Sequence[Server]) -> None:
    """Blocks until interrupted. Raises `DevstackError` where one of the servers ends before."""
    while True:
        for server in servers:
            server.check()
        if servers:
            # Their supervisors are all the children there are. Each is left to `check`, which asks for its end.
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        else:
            signal.pause()


def text(found: Services) -> str:
    return TEXT.format(origin=found.origin.replace("; ", "\n"), kafka=found.kafka, postgres=found.postgres)


if __name__ == "__main__":
    sys.exit(main())

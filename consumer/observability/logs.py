"""Logging: JSON for machines, a console for people; libraries' loggers go the same way. No bodies of events."""

import logging
import sys
import time
from collections.abc import Callable

import structlog
from rich.console import Console

from consumer.settings import LogSettings

NOISY = {
    "aiokafka": logging.WARNING,
    "alembic": logging.WARNING,
    "asyncio": logging.WARNING,
    "aiohttp": logging.WARNING,
    "opentelemetry": logging.WARNING,
}
QUIET_SECONDS = 60.0
"""In an outage the client of Kafka says the same many times a second; once in so long is enough."""


class SeldomRepeated(logging.Filter):
    """Lets a line of a library pass unless the same one has passed a moment ago. Our own lines always pass."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._passed: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.split(".")[0] not in NOISY:
            return True
        line, now = (record.name, str(record.msg)), self._clock()
        if now - self._passed.get(line, -QUIET_SECONDS) < QUIET_SECONDS:
            return False
        self._passed.pop(line, None)
        self._passed[line] = now
        # The oldest come first, and are forgotten: a line may hold what never comes again, such as an address.
        while now - self._passed[oldest := next(iter(self._passed))] >= QUIET_SECONDS:
            del self._passed[oldest]
        return True


def configure(settings: LogSettings) -> None:
    console = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    terminal = Console(stderr=True)  # knows NO_COLOR
    colors = terminal.color_system is not None and not terminal.no_color
    renderer = structlog.dev.ConsoleRenderer(colors=colors) if console else structlog.processors.JSONRenderer()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    handler.addFilter(SeldomRepeated())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name, least in NOISY.items():
        logging.getLogger(name).setLevel(max(level, least))

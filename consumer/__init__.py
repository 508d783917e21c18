"""A Kafka consumer that keeps customer conversations right while many writers touch them at once.

Programs beside the consumer write through the names exported here. They are imported when they are used, so that the
command line starts quickly.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from consumer.errors import ConcurrencyError, ConfigurationError, InvalidEventError, RefusedError, UnavailableError
    from consumer.lifecycle.model import Author, Intent, ManualClose, Message, Outcome, Policy, Status, Tick
    from consumer.observability.metrics import Metrics
    from consumer.postgres.store import PostgresStore
    from consumer.service.service import ConversationService, RetryPolicy
    from consumer.settings import DatabaseSettings

_MODULES = {
    "consumer.errors": (
        *("ConcurrencyError", "ConfigurationError", "InvalidEventError", "RefusedError", "UnavailableError"),
    ),
    "consumer.lifecycle.model": (
        *("Author", "Intent", "ManualClose", "Message", "Outcome", "Policy", "Status", "Tick"),
    ),
    "consumer.observability.metrics": ("Metrics",),
    "consumer.postgres.store": ("PostgresStore",),
    "consumer.service.service": ("ConversationService", "RetryPolicy"),
    "consumer.settings": ("DatabaseSettings",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Author",
    "ConcurrencyError",
    "ConfigurationError",
    "ConversationService",
    "DatabaseSettings",
    "Intent",
    "InvalidEventError",
    "ManualClose",
    "Message",
    "Metrics",
    "Outcome",
    "Policy",
    "PostgresStore",
    "RefusedError",
    "RetryPolicy",
    "Status",
    "Tick",
    "UnavailableError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)

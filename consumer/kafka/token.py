"""Tokens for SASL OAUTHBEARER, from a function that the operator names."""

import asyncio
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError

from consumer.errors import ConfigurationError

SETTING = "CONSUMER_KAFKA__SASL_TOKEN_PROVIDER"


class TokenError(KafkaConnectionError):  # type: ignore[misc]
    """There is no token now. To Kafka's client, a connection that could not be made: it tries again."""


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]
    """Asks the function of `name` (`module:function`) for a token on each connection. It may be a coroutine function.

    Raises `ConfigurationError` where there is no such function.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._function = _imported(name)

    async def token(self) -> str:
        try:
            token = await self._ask()
        except Exception as error:
            raise TokenError(f"{self._name} raised {type(error).__name__}: {error}") from error
        if not isinstance(token, str) or not token:
            raise TokenError(f"{self._name} returned no token but {type(token).__name__}")
        return token

    async def _ask(self) -> object:
        """A plain function may wait for its token, so it gets a thread."""
        if inspect.iscoroutinefunction(self._function):
            return await self._function()
        return await asyncio.to_thread(self._function)


def _imported(name: str) -> Callable[[], Any]:
    module, _, function = name.partition(":")
    try:
        imported = import_module(module)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        remedy = "install it, or add its folder to PYTHONPATH"
        raise ConfigurationError(f"{SETTING}={name}: {module} cannot be imported ({why}): {remedy}") from error
    found: Callable[[], Any] | None = getattr(imported, function, None)
    if not callable(found):
        raise ConfigurationError(f"{SETTING}={name}: {module} has no function {function}: name one that it has")
    return found

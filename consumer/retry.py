"""Retries with full jitter: through contention, through outages. The one room that knows tenacity.

Full jitter (each delay is drawn evenly from 0 to a ceiling that doubles) spreads writers that lost the same race better
than any fixed share of the ceiling: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    stop_never,
    wait_exponential,
)

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]
"""Waits that many seconds. It may raise to end the retries."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Each delay is drawn from 0 to a ceiling that doubles from `initial_seconds` to `max_seconds`."""

    initial_seconds: float
    max_seconds: float
    rng: Random = field(default_factory=Random)

    def __call__(self, state: RetryCallState) -> float:
        ceiling = wait_exponential(multiplier=self.initial_seconds, max=self.max_seconds)
        return self.rng.uniform(0, ceiling(state))


async def retried(
    action: Callable[[int], Awaitable[T]],
    errors: type[Exception],
    backoff: Backoff,
    sleep: Sleep,
    *,
    but: type[Exception] | tuple[()] = (),
    attempts: int | None = None,
    seconds: float | None = None,
    before_sleep: Callable[[BaseException, float], None] = lambda *_: None,
) -> T:
    """What `action` returns, called with 1, 2, 3 ...: as often as it takes, at most `attempts`, or for `seconds` more.

    Only `errors` are retried, not those that are `but` as well; the last one is raised when the limit is reached.
    `before_sleep` is called with the error and the delay in seconds.
    """
    try:
        # Mostly that is all, and tenacity would take longer for it than the action itself.
        return await action(1)
    except errors as error:
        if isinstance(error, but):
            raise
        first = [error]
    stop = stop_after_attempt(attempts) if attempts else stop_after_delay(seconds) if seconds else stop_never
    retrying = AsyncRetrying(
        retry=retry_if_exception(lambda error: isinstance(error, errors) and not isinstance(error, but)),
        wait=backoff,
        stop=stop,
        sleep=sleep,
        before_sleep=lambda state: before_sleep(_error(state), state.next_action.sleep if state.next_action else 0.0),
        reraise=True,
    )

    async def again() -> T:
        number: int = retrying.statistics["attempt_number"]
        if number == 1:
            raise first.pop()  # kept here, it would keep its traceback, and that would keep it
        return await action(number)

    return await retrying(again)


def _error(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None
    return error

"""What a fault is, and the catalogue that each module of this package adds its own to."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

from tests.chaos.rig import Rig
from tests.traffic import Mix

Strike = Callable[[Rig], Awaitable[None]]


class OvertakenError(Exception):
    """Other faults came first, so this one did not take place."""


class Track(StrEnum):
    """In a storm, faults of one track follow each other; those of different tracks overlap."""

    PROCESSES = "processes"
    PAUSES = "pauses"
    DATABASE = "database"
    BROKERS = "brokers"
    TRAFFIC = "traffic"


@dataclass(frozen=True, slots=True)
class Fault:
    """`strike` does it and undoes it again. `mix` is that of the scenario where it runs alone."""

    name: str
    number: int
    what: str
    track: Track
    strike: Strike
    weight: float = 1.0
    """How often a storm draws it; 0: only alone."""
    mix: Mix | None = None
    needs: Callable[[], str | None] = lambda: None
    """Why it cannot happen here; null if it can."""
    dead_letters_on_one_broker: bool = False


FAULTS: dict[str, Fault] = {}


def took_place(rig: Rig, happened: bool, what: str) -> None:
    """What a fault promises where it is alone. Raises `OvertakenError` where others kept it from happening."""
    rig.expect(happened or rig.strikes > 1, what)
    if not happened:
        raise OvertakenError(what)


def fault(
    number: int,
    what: str,
    track: Track,
    *,
    weight: float = 1.0,
    mix: Mix | None = None,
    needs: Callable[[], str | None] = lambda: None,
    dead_letters_on_one_broker: bool = False,
) -> Callable[[Strike], Strike]:
    """Adds the function to the catalogue, under its name with hyphens."""

    def add(strike: Strike) -> Strike:
        name = strike.__name__.replace("_", "-")
        FAULTS[name] = Fault(name, number, what, track, strike, weight, mix, needs, dead_letters_on_one_broker)
        return strike

    return add

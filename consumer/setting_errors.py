"""What is wrong with a setting, in words: the variable, what was given, what to write."""

from collections.abc import Collection
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from consumer.durations import format_duration

OWN = "Value error, "
"""What pydantic puts before the message of a validator of ours."""
KINDS = {
    bool: "true or false",
    float: "a number of seconds such as 2.5",
    int: "a whole number",
    str: "text that is not empty",
    timedelta: "a duration such as 48h, 15m or 90s",
    tuple: "names, separated by commas",
    Path: "the path of a file that is there",
}


def wrong(variable: str, given: str | None, message: str, field: FieldInfo) -> str:
    """`given` is null where it is a secret. Pydantic's message counts where a validator of ours has written it."""
    shown = variable if given is None else f"{variable}={given}"
    return f"{shown}: {message.removeprefix(OWN) if message.startswith(OWN) else f'should be {expected(field)}'}"


def expected(field: FieldInfo) -> str:
    """What to write, such as `a whole number, 1 to 64`."""
    kind = _without_extras(field.annotation)
    if get_origin(kind) is Literal:
        *some, last = get_args(kind)
        return f"{', '.join(some)} or {last}"
    limits = {
        name: format_duration(limit) if isinstance(limit, timedelta) else limit
        for constraint in field.metadata
        for name in ("ge", "gt", "le")
        if (limit := getattr(constraint, name, None)) is not None
    }
    return KINDS[get_origin(kind) or kind] + _range(**limits)


def suggestion(name: str, allowed: Collection[str]) -> str:
    """Which setting is meant by one that there is not."""
    close = get_close_matches(name.upper(), allowed, n=1, cutoff=0.75)
    return f"did you mean {close[0]}?" if close else "`conversation-consumer config` lists those there are"


def _without_extras(annotation: Any) -> Any:
    """The type alone: without `None` and what is annotated."""
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(part for part in get_args(annotation) if part is not NoneType)
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _range(ge: object = None, gt: object = None, le: object = None) -> str:
    if ge is not None:
        return f", {ge} to {le}" if le is not None else f", at least {ge}"
    above, at_most = f", above {gt}" if gt is not None else "", f", at most {le}" if le is not None else ""
    return above + at_most

"""Puts something else in the place of a name, for a while."""

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, other: Any) -> Iterator[None]:
    """`other` in the place of `owner.name`, or of a builtin that the module uses by that name."""
    missing = object()
    original = vars(owner).get(name, missing)
    if original is missing and not hasattr(builtins, name):
        raise LookupError(f"{owner} has no {name}")
    setattr(owner, name, other)
    try:
        yield
    finally:
        if original is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, original)

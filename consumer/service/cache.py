"""The conversation cache of a partition."""

from collections.abc import Iterable
from itertools import islice

from consumer.lifecycle.model import Change, Conversation
from consumer.service.ports import Conversations, Lost


class Memory:
    """Conversations as the last transactions of their partition left them: only what others changed since is read.

    Good under the guard alone: while the offset carries our mark, nothing that was committed before it can have been
    undone, so a version that is still the same is still the same conversation. Whatever fails, all of it is forgotten.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: the most conversations kept; those written longest ago go first."""
        self._limit = limit
        self._conversations: dict[str, Conversation] = {}

    def of(self, keys: Iterable[str]) -> Conversations:
        kept = self._conversations
        return {key: kept[key] for key in keys if key in kept}

    def keep(self, changes: Iterable[Change], lost: Lost) -> None:
        kept = self._conversations
        for change in changes:
            key = change.before.id
            kept.pop(key, None)
            if key not in lost and change.after.version:
                kept[key] = change.after.without_archive()
        for key in list(islice(kept, max(0, len(kept) - self._limit))):
            del kept[key]

    def forget(self) -> None:
        self._conversations.clear()

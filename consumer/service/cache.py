"""The conversation cache of a partition."""

from collections.abc import Iterable
from itertools import islice

from consumer.lifecycle.model import Change, Conversation
from consumer.service.ports import Conversations, Lost


class ConversationCache:
    """Conversations as the last transactions of their partition left them: only what others changed since is read.

    An entry is valid under the guard alone. While the offset carries our fencing token, nothing that was committed
    before it can have been undone, so a version that is still the same is still the same conversation. Any failure
    clears the cache.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: the most conversations kept; those written longest ago are evicted first."""
        self._limit = limit
        self._conversations: dict[str, Conversation] = {}

    def lookup(self, keys: Iterable[str]) -> Conversations:
        """Those of `keys` that are cached."""
        cached = self._conversations
        return {key: cached[key] for key in keys if key in cached}

    def update(self, changes: Iterable[Change], lost: Lost) -> None:
        """Takes what was committed; what lost its race is dropped."""
        cached = self._conversations
        for change in changes:
            key = change.before.id
            cached.pop(key, None)
            if key not in lost and change.after.version:
                cached[key] = change.after.without_archive()
        for key in list(islice(cached, max(0, len(cached) - self._limit))):
            del cached[key]

    def clear(self) -> None:
        self._conversations.clear()

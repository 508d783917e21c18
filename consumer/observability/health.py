"""What the probes look at: facts that the parts of a replica leave here."""

import time
from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Health:
    """One replica. Times are of the monotonic clock, in seconds."""

    joined: bool = False
    draining: bool = False
    polled_at: float = field(default_factory=time.monotonic)
    outages: dict[str, str] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    last_dead_letters: deque[str] = field(default_factory=lambda: deque(maxlen=10))

    def alive(self, poll_timeout_seconds: float) -> bool:
        """Loop and poll go on; Kafka and the database have no say, a restart would not mend them.

        Who has not joined the group waits for Kafka and need not poll.
        """
        return not self.joined or time.monotonic() - self.polled_at < poll_timeout_seconds

    def not_ready(self) -> list[str]:
        """Why this replica should get no trust; empty when it is ready. Owning no partition is fine."""
        reasons = [] if self.joined else ["has not joined the consumer group"]
        reasons += ["draining"] if self.draining else []
        reasons += [f"{partition}: {why}" for partition, why in (*self.outages.items(), *self.stopped.items())]
        return reasons

"""Records as nobody would write them: valid ones in odd clothes, nearly valid ones, and rubbish."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from random import Random
from typing import Any

Pair = tuple[bytes | None, bytes | None]
CONVERSATIONS = 3000
KINDS = ("inbound-message", "inbound-message", "inbound-message", "manual-close", "tick")
STATUSES = ("failed", "user_closed", "support_closed", "agent_closed")
JUNK: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1.5,
    10**400,
    "",
    " ",
    "x" * 201,
    "x" * 5000,
    "nul\0here",
    "\ud800",
    "ünïcödé 🎉",
    [],
    {},
    [[[]]],
    {"a": {"b": None}},
    "consumer",
    "close",
    "expired",
    "9999-12-31T23:59:59Z",
    "1969-12-31T23:59:59Z",
    "2026-02-30T00:00:00Z",
    "2026-03-01T00:00:00",
    "2026-03-01",
    1772366400,
    float("nan"),
    float("inf"),
)
"""What may stand where something else should."""


@dataclass(frozen=True, slots=True)
class Made:
    """A record, and whether it must be applied, must be a dead letter, or may be either."""

    key: bytes | None
    value: bytes | None
    valid: bool | None


class Fuzzer:
    """The same seed makes the same records but for their times, which are around now."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._random = Random(seed)
        self._names = [self._name(number) for number in range(CONVERSATIONS)]
        self._count = 0
        self._recent: list[Made] = []
        self._ways: tuple[tuple[int, Callable[[], Made]], ...] = (
            (50, self._odd),
            (5, self._again),
            (12, self._with_junk),
            (8, self._without_something),
            (10, self._scratched),
            (4, self._of_another_key),
            (3, self._deep),
            (3, self._rubbish),
            (2, self._nothing),
            (1, self._oversized),
        )

    def record(self) -> Made:
        weights = [weight for weight, _ in self._ways]
        return self._random.choices([make for _, make in self._ways], weights)[0]()

    def _name(self, number: int) -> str:
        """Conversation ids of all lengths, in many alphabets."""
        letters = self._random.choice(("c", "ж", "漢", "🎉", " ", "/", "'", "%s", '"', "\\", "\x7f"))
        return (f"{number}-" + letters * self._random.randint(1, 200))[:200]

    def _event(self) -> dict[str, Any]:
        kind = self._random.choice(KINDS)
        event: dict[str, Any] = {
            "specversion": "1.0",
            "type": f"conversation.{kind}.v1",
            "id": f"e-{self._random.randrange(self._count // 2 + 10)}"
            if self._random.random() < 0.1
            else self._new_id(),
            "source": self._random.choice(("whatsapp:1", "telegram", "ü", "s" * 200)),
            "subject": self._random.choice(self._names),
            "time": self._time(),
        }
        if kind == "inbound-message":
            author = self._random.choice(("user", "user", "agent", "support", "system"))
            event["data"] = {"author": author, "intent": self._random.choice((None, None, None, "close"))}
        elif kind == "manual-close":
            reason = self._random.choice((None, "", "r" * 500, "\x01\x1f", "line\nbreak"))
            event["data"] = {"status": self._random.choice(STATUSES), "actor": "agent-7", "reason": reason}
        return event

    def _new_id(self) -> str:
        self._count += 1
        return f"e-{self._count}"

    def _time(self) -> str:
        """Around now, in any of the ways that RFC 3339 allows."""
        span = self._random.choice((1, 60, 3600, 86_400))
        at = datetime.now(UTC) + timedelta(seconds=self._random.uniform(-5 * span, span / 2))
        at = min(at, datetime.now(UTC) + timedelta(hours=23))
        zone = timezone(timedelta(minutes=self._random.choice((0, 0, 330, -480, 845))))
        text = at.astimezone(zone).isoformat(timespec=self._random.choice(("seconds", "milliseconds", "microseconds")))
        return text.replace("+00:00", "Z") if self._random.random() < 0.5 else text

    def _made(self, event: dict[str, Any], valid: bool | None) -> Made:
        subject = event.get("subject")
        key = subject.encode(errors="surrogatepass") if isinstance(subject, str) else b"?"
        indent = self._random.choice((None, None, 2))
        value = json.dumps(event, ensure_ascii=self._random.random() < 0.5, indent=indent)
        return Made(key, value.encode(errors="surrogatepass"), valid)

    def _odd(self) -> Made:
        """Valid: unknown fields, in any order, and whatever else the contract does not mention."""
        event = self._event()
        if self._random.random() < 0.3:
            event["x" * self._random.randint(1, 20)] = self._random.choice([j for j in JUNK if _is_json(j)])
        if self._random.random() < 0.2 and "data" in event:
            event["data"]["text"] = "secret " * self._random.randint(1, 50)
        items = list(event.items())
        if self._random.random() < 0.3:
            self._random.shuffle(items)
        made = self._made(dict(items), valid=True)
        self._recent = [*self._recent[-50:], made]
        return made

    def _again(self) -> Made:
        """A valid one, delivered before."""
        return self._random.choice(self._recent) if self._recent else self._odd()

    def _with_junk(self) -> Made:
        event = self._event()
        into = event["data"] if "data" in event and self._random.random() < 0.4 else event
        into[self._random.choice(list(into))] = self._random.choice(JUNK)
        return self._made(event, valid=None)

    def _without_something(self) -> Made:
        event = self._event()
        del event[self._random.choice(("specversion", "type", "id", "source", "subject", "time"))]
        return self._made(event, valid=False)

    def _scratched(self) -> Made:
        """Some bytes changed, lost or doubled."""
        made = self._odd()
        value = bytearray(made.value or b"")
        for _ in range(self._random.randint(1, 3)):
            at = self._random.randrange(len(value))
            match self._random.randrange(4):
                case 0:
                    value[at] = self._random.randrange(256)
                case 1:
                    del value[at : at + self._random.randint(1, 20)]
                case 2:
                    value[at:at] = value[at : at + self._random.randint(1, 20)]
                case _:
                    del value[at:]
            value = value or bytearray(b" ")
        return Made(made.key, bytes(value), None)

    def _of_another_key(self) -> Made:
        made = self._odd()
        return Made(self._random.choice((None, b"", b"\xff", (made.key or b"") + b" ")), made.value, valid=False)

    def _deep(self) -> Made:
        depth = self._random.choice((100, 10_000, 30_000))
        opening, closing = self._random.choice((("[", "]"), ('{"a":', "}")))
        deep = opening * depth + ("1" if opening != "[" else "") + closing * depth
        return Made(b"c", deep[: 2**15].encode(), valid=False)

    def _rubbish(self) -> Made:
        return Made(b"c", self._random.randbytes(self._random.randint(0, 300)), valid=False)

    def _nothing(self) -> Made:
        return Made(
            self._random.choice((None, b"c")), self._random.choice((None, b"", b"null", b"0", b"[]")), valid=False
        )

    def _oversized(self) -> Made:
        event = self._event() | {"text": "x" * 2**16}
        return self._made(event, valid=False)


def _is_json(value: Any) -> bool:
    """Whether every JSON parser would take it: no NaN, no lone surrogate, no number of 400 digits."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, UnicodeEncodeError):
        return False
    return True

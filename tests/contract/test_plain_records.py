"""What the quick decoder accepts, the models accept as well, as the same event."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import schemas
from consumer.decoding import plain_event, to_event
from consumer.lifecycle.model import Event
from schemas import Invalid, decode
from schemas.cloudevents import MAX_AHEAD
from tests.fuzz.records import JUNK, Fuzzer
from tests.fuzz.records import Made as FuzzedRecord

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
EXAMPLES = sorted(Path(schemas.__file__).parent.glob("examples/*/*/*.json"))
LIMIT = 64 * 1024
PLAIN = {
    "specversion": "1.0",
    "type": "conversation.manual-close.v1",
    "id": "close-1",
    "source": "back-office",
    "subject": "thread-4711",
    "time": "2026-03-01T12:00:00Z",
    "data": {"status": "agent_closed", "actor": "agent-7", "reason": "solved"},
}
TIMES = (
    "2026-03-01T12:00:00.1234567Z",
    "2026-03-01T12:00:00.9999999+00:00",
    "2026-03-01t12:00:00z",
    "2026-03-01 12:00:00Z",
    "2026-03-01T12:00:00+0200",
    "2026-03-01T12:00:00+02:00",
    "2026-03-01T12:00:00-00:00",
    "2026-03-01T12:00:60Z",
    "2026-03-01T24:00:00Z",
    "2026-03-01T12:00Z",
    "0001-01-01T00:00:00+23:59",
    "2026-03-02T12:29:59Z",
    "2026-03-02T12:30:00.000001Z",
)
INSERTED = (
    b' "x": 1e999,',
    b' "x": ' + b"9" * 900 + b",",
    b' "x": 01,',
    b' "x": NaN,',
    b' "x": "\xff",',
    b' "x": "\\ud800",',
    b' "id": "other",',
    b' "type": "conversation.tick.v1",',
    b' "x": ' + b"[" * 15 + b"]" * 15 + b",",
    b" \x00",
    b"/**/",
)
DAMAGE = b'{}[]",:\\0aZ \x00\x7f\xc3-+.eE'


def by_the_models(key: bytes | None, value: bytes | None, now: datetime) -> Event | None:
    try:
        return to_event(decode(key, value, now=now, max_bytes=LIMIT))
    except Invalid:
        return None


def same(key: bytes | None, value: bytes | None, now: datetime = NOW) -> bool:
    """Whether it was decoded quickly; then the models must say the same."""
    quick = plain_event(key, value, now + MAX_AHEAD, LIMIT)
    if quick is not None:
        slow = by_the_models(key, value, now)
        assert slow == quick
        assert type(slow) is type(quick)
        assert slow.at.tzinfo is quick.at.tzinfo is UTC
    return quick is not None


def test_a_plain_record_is_decoded_quickly() -> None:
    for event_type, data in (("inbound-message", {"author": "user"}), ("manual-close", PLAIN["data"]), ("tick", None)):
        value = json.dumps({**PLAIN, "type": f"conversation.{event_type}.v1", "data": data}).encode()

        assert same(b"thread-4711", value)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.parent.name}/{path.stem}")
def test_every_example_is_decoded_the_same(path: Path) -> None:
    same(b"thread-4711", path.read_bytes())


@pytest.mark.parametrize("time", TIMES)
def test_odd_times_are_decoded_the_same(time: str) -> None:
    same(b"thread-4711", json.dumps({**PLAIN, "time": time}).encode())


@pytest.mark.parametrize("text", INSERTED)
def test_odd_json_is_decoded_the_same(text: bytes) -> None:
    value = json.dumps(PLAIN).encode()

    for place in (1, len(value) - 1):
        same(b"thread-4711", value[:place] + text + value[place:])
        same(b"thread-4711", value[:place] + b"," + text.rstrip(b",") + value[place:])


@pytest.mark.parametrize("seed", range(4))
def test_hostile_records_are_decoded_the_same(seed: int) -> None:
    fuzzer = Fuzzer(seed)
    made: list[FuzzedRecord] = [fuzzer.record() for _ in range(5000)]

    quick = sum(same(one.key, one.value, datetime.now(UTC)) for one in made)

    assert 500 < quick < 4900


junk = st.one_of(st.sampled_from(JUNK), st.text(max_size=3), st.integers(), st.sampled_from(TIMES))


@given(
    st.sampled_from([*PLAIN, "other"]), junk, st.sampled_from(["status", "actor", "reason", "author", "intent"]), junk
)
def test_fields_with_anything_in_them_are_decoded_the_same(name: str, junk: Any, inner: str, more: Any) -> None:
    for changed in ({**PLAIN, name: junk}, {**PLAIN, "data": {**PLAIN["data"], inner: more}}):  # type: ignore[dict-item]
        for ascii_only in (True, False):
            value = json.dumps(changed, ensure_ascii=ascii_only).encode(errors="surrogatepass")

            same(b"thread-4711", value)


@given(st.randoms(use_true_random=False))
def test_damaged_records_are_decoded_the_same(random: Random) -> None:
    value = bytearray(json.dumps(PLAIN).encode())
    for _ in range(random.randint(1, 3)):
        place = random.randrange(len(value))
        value[place : place + random.randint(0, 2)] = bytes(random.choices(DAMAGE, k=random.randint(0, 2)))

    same(b"thread-4711", bytes(value), NOW + timedelta(days=random.randint(-1, 1)))

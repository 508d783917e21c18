"""The catalogue: each process exports what it measures, and batches are counted as single observations are."""

import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest

from consumer.observability.histogram import BulkHistogram
from consumer.observability.metrics import Metrics, Part, samples

BUCKETS = (0.1, 0.5, 1.0)


def families(parts: Part) -> set[str]:
    return {family.name for family in Metrics(["events"], parts=parts).registry.collect()}


def test_a_ticker_exports_what_it_measures_and_nothing_of_a_consumer() -> None:
    exported = families(Part.TICKER_PROCESS)

    assert {"conversation_ticks", "conversation_tick_delay_seconds", "conversation_expiry_overdue"} <= exported
    assert {"conversation_db_transaction_seconds", "conversation_build_info"} <= exported
    assert not exported & {"conversation_events", "conversation_write_attempts", "conversation_assigned_partitions"}


def test_a_replica_exports_nothing_of_a_ticker() -> None:
    exported = families(Part.REPLICA)

    assert {"conversation_events", "conversation_assigned_partitions", "conversation_db_pool_connections"} <= exported
    assert not exported & {"conversation_ticks", "conversation_expiry_overdue"}


@pytest.mark.parametrize("parts", [Part.REPLICA, Part.TICKER_PROCESS])
def test_a_process_exports_its_memory_and_cpu(parts: Part) -> None:
    assert {"process_resident_memory_bytes", "process_cpu_seconds", "process_open_fds"} <= families(parts)


def test_a_program_exports_its_own_writes_beside_its_other_metrics() -> None:
    registry = CollectorRegistry()
    Histogram("program_seconds", "Of the program.", registry=registry)

    Metrics(registry=registry, parts=Part.LIBRARY)

    exported = generate_latest(registry).decode()
    assert "program_seconds_count" in exported
    assert 'conversation_write_attempts_total{operation="manual-close",result="conflict"} 0.0' in exported
    assert "conversation_assigned_partitions" not in exported


class TestBulkHistogram:
    """What is assumed of the private fields of prometheus_client's histogram."""

    def test_observations_of_a_batch_count_as_single_ones_do(self) -> None:
        amounts = [0.05, 0.1, 0.3, 0.5, 0.7, 2.0]
        one, other = CollectorRegistry(), CollectorRegistry()
        single = Histogram("h", "", buckets=BUCKETS, registry=one)
        bulk = BulkHistogram("h", "", buckets=BUCKETS, registry=other)

        for amount in amounts:
            single.observe(amount)
        bulk.observe_all(amounts)

        assert self.values(one) == pytest.approx(self.values(other))

    def test_an_observation_many_times_counts_as_often(self) -> None:
        one, other = CollectorRegistry(), CollectorRegistry()
        single = Histogram("h", "", buckets=BUCKETS, registry=one)
        bulk = BulkHistogram("h", "", buckets=BUCKETS, registry=other)

        for _ in range(7):
            single.observe(0.5)
        bulk.observe_times(0.5, 7)

        assert self.values(one) == pytest.approx(self.values(other))

    def test_ages_below_zero_count_as_zero(self) -> None:
        registry = CollectorRegistry()
        BulkHistogram("h", "", buckets=BUCKETS, registry=registry).observe_all([-5.0, 0.3])

        assert self.values(registry)["h_sum", ""] == pytest.approx(0.3)

    def values(self, registry: CollectorRegistry) -> dict[tuple[str, str], float]:
        found = samples(registry)
        return {(s.name, s.labels.get("le", "")): s.value for s in found if not s.name.endswith("_created")}

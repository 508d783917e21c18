"""The lag gauges: collected at scrape, so that they vanish with the partition."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a partition is behind: records not yet applied, and the age of the oldest of them."""

    topic: str
    partition: int
    records: int
    seconds: float


class LagCollector(Collector):
    def __init__(self, read: Callable[[], Iterable[Lag]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        labels = ["topic", "partition"]
        records = GaugeMetricFamily("conversation_lag_records", "Records not yet applied.", labels=labels)
        seconds = GaugeMetricFamily(
            "conversation_lag_seconds", "Age of the oldest record not yet applied.", labels=labels
        )
        for lag in self._read():
            records.add_metric([lag.topic, str(lag.partition)], lag.records)
            seconds.add_metric([lag.topic, str(lag.partition)], lag.seconds)
        return records, seconds

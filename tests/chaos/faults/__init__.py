"""Every fault, by name. The table in docs/reliability.md is made of it."""

from tests.chaos.faults import brokers, database, memory, network, processes, traffic
from tests.chaos.faults.catalogue import FAULTS, Fault

__all__ = ["FAULTS", "Fault", "brokers", "database", "memory", "network", "processes", "traffic"]

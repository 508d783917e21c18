"""Every fault, by name. The numbers are those of the fault matrix in docs/reliability.md."""

from tests.chaos.faults import brokers, database, network, processes, traffic
from tests.chaos.faults.catalogue import FAULTS, Fault

__all__ = ["FAULTS", "Fault", "brokers", "database", "network", "processes", "traffic"]

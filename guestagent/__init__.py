"""guestagent copies the traffic of a VM's own virtual NIC to a collector, inside budgets that it keeps by feedback."""

__version__ = "0.1.0"

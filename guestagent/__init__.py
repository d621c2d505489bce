"""guestagent copies the traffic of a VM's own virtual NIC to a collector and accounts for every packet."""

__version__ = "0.1.0"

"""Known defects of paged attention, as backends: what they do to a model can be measured before it is suspected."""

from pqkv.kernels.faults.catalog import FAULTS, Fault, canonical_name, fault_of

__all__ = ["FAULTS", "Fault", "canonical_name", "fault_of"]

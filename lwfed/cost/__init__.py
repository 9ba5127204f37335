"""The ledger: parameters, bytes, FLOPs and memory of every stage, derived from the plan alone, without torch."""

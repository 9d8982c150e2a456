"""Rules of least privilege: what a workload may do."""

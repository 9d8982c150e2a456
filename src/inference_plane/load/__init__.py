"""Load as users make it, and what they felt of it.

`profiles` reads a profile, `plan` makes every request of it in advance, seeded; `locustfile` is what locust runs, in a
process of its own; `measures` and `thresholds` judge the samples that it leaves, `report` lays them out. `targets` are
what load can be sent to. Nothing in `plan`, `measures` and `thresholds` does I/O.
"""

"""The demonstration: the plane on one machine, and scenes that show what it does.

`plane` starts it, `scenes` says as data what is sent and what must come back, `client` sends, `report` judges the
answers and lays them out. Nothing in `scenes` and `report` does I/O.
"""

"""The router's own harness serves here too; these tests stand apart because they need a tool that is built."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "router"))

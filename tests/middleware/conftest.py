import sys
from pathlib import Path

# The engine finds the middleware as a top-level module on PYTHONPATH; so do the tests. No bytecode is left beside it,
# because `helm package` would take it along.
writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
sys.path.insert(0, str(Path(__file__).parents[2] / "charts/vllm/files"))
import plane_middleware  # noqa: E402, F401

sys.dont_write_bytecode = writes_bytecode

"""What commands share that run something for a while: where its files stand, and how they tell of its steps."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import rich.console


@contextlib.contextmanager
def folder(keep: Path | None) -> Iterator[Path]:
    """The folder that is to be kept, or one that ends with the run."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="inference-plane-") as made:
            yield Path(made)
    else:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()


@contextlib.contextmanager
def step(console: rich.console.Console, what: str) -> Iterator[None]:
    """Prints what begins, and when it is done how many seconds it took."""
    started = time.monotonic()
    console.print(f"{what} ...", end=" ")
    try:
        yield
    except BaseException:
        console.print()
        raise
    console.print(f"{time.monotonic() - started:.1f} s")

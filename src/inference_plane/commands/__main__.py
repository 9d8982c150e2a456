"""What `scripts/NAME` starts: `python -m inference_plane.commands MODULE [ARGUMENT ...]`."""

import os
import runpy
import select
import signal
import sys


def reader_is_gone() -> bool:
    """Whether nobody reads standard output any more, as after `| head -1`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def run(module: str) -> None:
    """Runs a module of this package as a program. It ends as its `main` says, or as if SIGPIPE had ended it.

    That signal is not let through: demo and bench write to sockets too, and have processes to end.
    """
    try:
        try:
            runpy.run_module(f"{__package__}.{module}", run_name="__main__", alter_sys=True)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not reader_is_gone():
            raise
        # What is still in the buffer goes nowhere, or Python would complain of it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


if __name__ == "__main__":
    run(sys.argv.pop(1))

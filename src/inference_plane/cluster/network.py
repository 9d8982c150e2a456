"""A network of its own for a whole cluster with what talks to it, in which every simulated pod's address is local.

A controller that dials pods finds them there: one server on 0.0.0.0 answers for each, and sees by its own end of the
connection which pod was meant. Nothing inside reaches the world, and the machine's own interfaces stay as they are, so
whatever is to be fetched or built is fetched and built before. Works for root, and for an ordinary user where the
kernel lets users make namespaces.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence

from inference_plane.cluster.embedded import POD_CIDR

SECONDS = 20

#: What runs first inside: loopback, and all addresses of pods on it.
_SET_UP = f'ip link set lo up && ip route add local {POD_CIDR} dev lo && exec "$@"'
#: A user becomes root of a namespace of its own, where it may do that; its files stay its own.
_WAYS = (("--net",), ("--user", "--map-root-user", "--net"))


class Unavailable(RuntimeError):
    """This machine gives nobody, or not this user, a network of its own; the message says what to do."""


def inside(command: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The words that run `command` in a new network, which ends with it. Its process id is the one that is started.

    Raises:
        Unavailable: this machine does not let this user.
    """
    return [*_way(), *map(os.fspath, command)]


@functools.cache
def _way() -> tuple[str, ...]:
    missing = [tool for tool in ("unshare", "ip") if shutil.which(tool) is None]
    if missing:
        raise Unavailable(f"no {' and no '.join(missing)} on PATH: install util-linux and iproute2")
    said = []
    for options in _WAYS[os.geteuid() != 0 :]:
        words = ("unshare", *options, "sh", "-c", _SET_UP, "sh")
        done = subprocess.run([*words, "true"], capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode == 0:
            return words
        said.append(f"`{shlex.join(words[: 1 + len(options)])}`: {done.stderr.strip()}")
    raise Unavailable(
        f"no network namespace can be made: {'; '.join(said)}. Run as root, or let users make them: "
        "sysctl -w kernel.unprivileged_userns_clone=1 (Debian), "
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu); a container needs CAP_SYS_ADMIN."
    )

"""Secrets and ConfigMaps as the kubelet mounts them: links into a folder that is exchanged as a whole."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

_version = itertools.count(1)


def mount(folder: Path, data: Mapping[str, str]) -> None:
    """Puts `data` (file name -> text) there, or in the place of what was there.

    As the kubelet does it: FILE is a link to ..data/FILE, and ..data one to a folder of this version, moved into
    place in one step. The folder of the version before is removed after.
    """
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "..data"
    before = link.resolve() if link.exists() else None
    version = folder / f"..version-{next(_version)}"
    version.mkdir(mode=0o700)
    for name, text in data.items():
        (version / name).write_text(text)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    new = folder / "..data_tmp"
    new.symlink_to(version.name)
    os.replace(new, link)
    if before is not None:
        shutil.rmtree(before)

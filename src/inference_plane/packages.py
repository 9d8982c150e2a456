"""Chart packages, made from an export of the repository and never from a folder that somebody works in.

`charts/<chart>/charts/` holds links to the siblings. `helm package` follows them, and an archive that `helm dependency
build` left beside one would go into the package too, with every file a second time; an export has none.
"""

import dataclasses
import gzip
import hashlib
import io
import pathlib
import subprocess
import tarfile
import tempfile

import yaml

from inference_plane import helm


class PackageError(Exception):
    """What must not be packaged; the message says what, why and what to do."""


@dataclasses.dataclass(frozen=True)
class Package:
    """One chart's archive; `sha256` is in hexadecimal."""

    path: pathlib.Path
    size: int
    sha256: str


def git(root: pathlib.Path, *arguments: str) -> str:
    """What git prints. Raises subprocess.CalledProcessError."""
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout


def version(charts: pathlib.Path) -> str:
    """The one version of all charts.

    Raises:
        PackageError: they, or the dependencies they state, have several.
    """
    found: dict[str, list[str]] = {}
    for file in sorted(charts.glob("*/Chart.yaml")):
        chart = yaml.safe_load(file.read_text())
        found.setdefault(chart["version"], []).append(chart["name"])
        for dependency in chart.get("dependencies", []):
            found.setdefault(dependency["version"], []).append(f"{chart['name']}'s {dependency['name']}")
        if chart.get("appVersion", chart["version"]) != chart["version"]:
            found.setdefault(chart["appVersion"], []).append(f"{chart['name']}'s appVersion")
    if len(found) != 1:
        said = "; ".join(f"{number}: {', '.join(names)}" for number, names in sorted(found.items()))
        raise PackageError(f"the charts have several versions ({said}). They are released together. Set one in all.")
    return next(iter(found))


def refuse_changed(root: pathlib.Path) -> None:
    """Refuses charts that are not what HEAD has, since nobody could make the same package again.

    Raises:
        PackageError: a file under charts/ is changed, new or deleted.
    """
    changed = git(root, "status", "--porcelain", "--", "charts").splitlines()
    if changed:
        names = ", ".join(line[3:] for line in changed)
        raise PackageError(
            f"charts/ is not what HEAD has ({names}). Nobody could make the same package again. "
            "Commit it, or pass --allow-dirty for a package that is not published."
        )


def refuse_released(root: pathlib.Path) -> None:
    """Refuses a version that is released with other charts.

    Raises:
        PackageError: the tag of the version exists, and charts/ differ from it.
    """
    tag = f"v{version(root / 'charts')}"
    if tag in git(root, "tag", "--list", tag).split() and git(root, "diff", "--name-only", tag, "HEAD", "--", "charts"):
        raise PackageError(
            f"{tag} is released, and charts/ have changed since. One version would be two packages. "
            "Raise the version in every Chart.yaml and the dependencies."
        )


def export(root: pathlib.Path, target: pathlib.Path, *, dirty: bool) -> None:
    """Puts charts/ of HEAD into `target`; with `dirty` of the working tree, without what git ignores."""
    if dirty:
        names = git(
            root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate", "--", "charts"
        )
        there = [name for name in names.split("\0") if name and (root / name).exists()]
        command = ["tar", "-C", str(root), "-c", "--no-recursion", *there]
    else:
        command = ["git", "-C", str(root), "archive", "HEAD", "charts"]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-C", str(target), "-x"], input=archive, check=True)


def in_order(archive: pathlib.Path) -> None:
    """Writes a package anew with its files by name: Helm writes dependencies in an order that changes from run to run.

    With the times of the commit, which an export has, and none in the gzip header, a commit is one SHA-256.
    """
    with tarfile.open(archive) as source:
        members = [(member, source.extractfile(member).read()) for member in source.getmembers()]
    with open(archive, "wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as target:
            for member, content in sorted(members, key=lambda pair: pair[0].name):
                target.addfile(member, io.BytesIO(content))


def make(root: pathlib.Path, output: pathlib.Path, *, dirty: bool = False) -> list[Package]:
    """Packages every chart of the checkout into `output`, in the order of their names.

    Raises:
        PackageError: the charts differ from HEAD (unless `dirty`), from their release, or in their versions.
        helm.HelmError: helm refused a chart.
    """
    if not dirty:
        refuse_changed(root)
        refuse_released(root)
    number = version(root / "charts")
    output.mkdir(parents=True, exist_ok=True)
    made = []
    with tempfile.TemporaryDirectory() as folder:
        export(root, pathlib.Path(folder), dirty=dirty)
        for chart in sorted(file.parent for file in pathlib.Path(folder, "charts").glob("*/Chart.yaml")):
            helm.run("package", str(chart), "--destination", str(output))
            path = output / f"{chart.name}-{number}.tgz"
            in_order(path)
            content = path.read_bytes()
            made.append(Package(path, len(content), hashlib.sha256(content).hexdigest()))
    return made

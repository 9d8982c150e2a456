"""The small commands: what they print where, and how they exit."""

import json
import pathlib
import re
import signal
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from inference_plane import checkout, helm
from inference_plane.commands import _environment, cluster, fit, model_files, package
from inference_plane.commands import release_notes, render, tool, values
from inference_plane.commands import test as suite

ENVIRONMENT = {
    "global": {
        "aws": {"region": "eu-central-1"},
        "tls": {"mode": "none"},
        "network": {"s3Cidrs": ["10.0.1.0/24"], "albSubnetCidrs": ["10.0.3.0/24"]},
        "teams": {"appeals": {}},
        "models": {
            "summary": {
                "source": "s3://models/summary/v7/",
                "weightsGiB": 15.3,
                "accelerator": "l40s",
                "maxModelLen": 16384,
                "replicas": {"min": 2},
                "team": "appeals",
            },
            "other": {"source": "s3://models/other/v1/", "weightsGiB": 1.5, "accelerator": "l4", "maxModelLen": 4096},
        },
    },
    "vllm": {"select": {"team": "appeals"}},
    "router": {"replicas": 3, "auth": {"mode": "none"}},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The environments dev and tight, where the second has a model that is too large."""
    tight = {"global": {"models": {"huge": ENVIRONMENT["global"]["models"]["summary"] | {"weightsGiB": 50}}}}
    (tmp_path / "dev.yaml").write_text(yaml.safe_dump(ENVIRONMENT))
    (tmp_path / "tight.yaml").write_text(yaml.safe_dump(tight))
    monkeypatch.setattr(checkout, "VALUES", tmp_path)
    return tmp_path


def test_an_environment_is_a_name_or_a_path(folder: pathlib.Path) -> None:
    assert _environment.load("dev") == _environment.load(str(folder / "dev.yaml")) == ENVIRONMENT


@pytest.mark.parametrize("command", [render.main, fit.main])
def test_an_unknown_environment_lists_the_known_ones(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["devv"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "error: no environment or values file 'devv'. Environments (values/*.yaml): dev, tight. "
        "Name one of them, or give the path of a values file.\n"
    )


@pytest.mark.parametrize(("text", "problem"), [("[1]", "holds no map"), ("a: [", "not YAML"), ("", "holds no map")])
def test_a_file_that_is_no_values_file(
    folder: pathlib.Path, text: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.yaml").write_text(text)
    assert values.main(["broken", "vllm"]) == 2
    assert f"broken.yaml: {problem}" in capsys.readouterr().err


class TestValues:
    def test_a_chart_gets_global_and_its_own_section(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert values.main(["dev", "vllm"]) == 0
        out, err = capsys.readouterr()
        assert yaml.safe_load(out) == {"global": ENVIRONMENT["global"], "select": {"team": "appeals"}}
        assert err == ""

    def test_the_umbrella_takes_all(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert values.main(["dev", "inference-plane"]) == 0
        assert yaml.safe_load(capsys.readouterr().out) == ENVIRONMENT

    def test_an_unknown_chart_lists_the_known_ones(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert values.main(["dev", "vlm"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        charts = "alb-ingress, inference-plane, karpenter-nodepools, kserve, router, vllm"
        assert err == f"error: no chart 'vlm'. Charts that install: {charts}.\n"

    @pytest.mark.parametrize("chart", ["vllm", "router"])
    def test_a_chart_takes_what_is_printed(
        self, chart: str, folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert values.main(["dev", chart]) == 0
        (folder / "alone.yaml").write_text(capsys.readouterr().out)
        assert helm.template(chart, files=[folder / "alone.yaml"]).of_kind("Deployment")


class TestRender:
    def deployments(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, Any]]:
        assert render.main([*arguments]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        objects = [document for document in yaml.safe_load_all(out) if document]
        return {o["metadata"]["name"]: o for o in objects if o["kind"] == "Deployment"}

    def test_the_umbrella_by_default(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert set(self.deployments(capsys, "dev")) == {"router", "summary"}

    def test_one_chart_with_a_value_and_a_namespace_of_its_own(self, capsys: pytest.CaptureFixture[str]) -> None:
        found = self.deployments(
            capsys, "dev", "--chart", "vllm", "--set", "select.team=", "--set", "select.models={other}",
            "--namespace", "team-a",
        )  # fmt: skip
        assert {name: o["metadata"]["namespace"] for name, o in found.items()} == {"other": "team-a"}

    def test_a_refusal_is_helm_s(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert render.main(["tight"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "\n- global.models.huge: weights 50.0 + " in err


class TestFit:
    def test_a_table_of_every_model(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert fit.main(["dev"]) == 0
        rows = {cells[0]: cells[1:] for line in capsys.readouterr().out.splitlines() if (cells := line.split())}
        assert rows["summary"] == "1 x l40s 1 19.3 40.2 22.9 11 of 16384 45 of 4096 yes".split()
        assert rows["other"] == "1 x l4 1 4.0 20.1 16.6 33 of 4096 64 of 1024 yes".split()

    def test_one_model_as_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert fit.main(["dev", "summary", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert list(report) == ["summary"]
        assert report["summary"]["haveGiB"] == 40.23
        assert report["summary"]["devices"] == 1

    def test_what_does_not_fit_is_exit_status_1_with_the_remedy(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert fit.main(["tight"]) == 1
        assert capsys.readouterr().err == (
            "global.models.huge: weights 50.0 + overhead 2.0 + one sequence of 16384 tokens 2.0 = 54.0 GiB do not fit "
            "40.2 GiB (44.7 GiB x 1 l40s x 0.9). Set tensorParallelSize: 2, or an accelerator with more memory.\n"
        )

    def test_an_unknown_model_lists_the_known_ones(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert fit.main(["dev", "sumary"]) == 2
        assert capsys.readouterr().err == "error: no model 'sumary' in dev. It has other, summary.\n"

    def test_the_entry_s_line_from_a_config(
        self, folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = folder / "config.json"
        config.write_text('{"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, '
                          '"hidden_size": 576, "torch_dtype": "bfloat16"}')
        assert fit.main(["--config", str(config)]) == 0
        out, err = capsys.readouterr()
        assert yaml.safe_load(out) == {"kvBytesPerToken": 23040}
        assert err.startswith("note: KV heads: 3;")

    def test_a_config_that_is_not_modelled(self, folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "config.json").write_text('{"kv_lora_rank": 512}')
        assert fit.main(["--config", str(folder / "config.json")]) == 2
        assert "latent attention" in capsys.readouterr().err

    @pytest.mark.parametrize("arguments", [[], ["dev", "--config", "config.json"]])
    def test_either_an_environment_or_a_config(self, arguments: list[str]) -> None:
        with pytest.raises(SystemExit) as exit_:
            fit.main(arguments)
        assert exit_.value.code == 2


COMMANDS = (render, values, fit, model_files, package, release_notes, tool, cluster)


@pytest.mark.parametrize("command", [module.main for module in COMMANDS])
def test_help_has_an_example(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        command(["--help"])
    assert exit_.value.code == 0
    assert "example" in capsys.readouterr().out


def test_a_reader_that_leaves_early_ends_a_command_without_a_traceback() -> None:
    command = f"set -o pipefail; {checkout.ROOT}/scripts/iam prod | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_fast_builds_nothing_and_says_what_it_leaves_out(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(suite.tools, "path", lambda tool: tmp_path / tool)
    monkeypatch.setattr(suite.tools, "build", lambda tool: ran.append(["build", tool]))
    done = SimpleNamespace(returncode=0)
    monkeypatch.setattr(suite.subprocess, "run", lambda command, **_: ran.append(command) or done)
    monkeypatch.setattr("sys.argv", ["test", "--fast", "alerts", "objects"])
    assert suite.main() == 0
    assert "not run alerts: --fast builds nothing; ./scripts/test alerts builds promtool" in capsys.readouterr().out
    assert [word for word in ran[0] if word.startswith("tests/")] == ["tests/manifests"]
    monkeypatch.setattr("sys.argv", ["test", "--fast", "alerts"])
    with pytest.raises(SystemExit):
        suite.main()
    monkeypatch.setattr("sys.argv", ["test", "alerts"])
    assert suite.main() == 0
    assert ran[1] == ["build", "promtool"] and "tests/alerts" in ran[2]
    (tmp_path / "promtool").touch()
    monkeypatch.setattr("sys.argv", ["test", "--fast", "alerts"])
    assert suite.main() == 0 and "tests/alerts" in ran[-1]


def test_what_takes_long_to_build_waits_until_it_is_asked_for(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(suite.tools, "path", lambda tool: tmp_path / tool)
    monkeypatch.setattr(suite.tools, "build", lambda tool: ran.append(tool))
    done = SimpleNamespace(returncode=0)
    monkeypatch.setattr(suite.subprocess, "run", lambda command, **_: ran.append(command) or done)
    monkeypatch.setattr(suite, "CANNOT", {"kind": lambda: "no Docker here"})
    monkeypatch.setattr("sys.argv", ["test"])
    assert suite.main() == 0
    said = capsys.readouterr().out
    assert "not run cluster: etcd, kube-apiserver, " in said and "not run kind: kind, ct, containerd, " in said
    assert "tests/cluster" not in ran[-1] and "etcd" not in ran
    for words in (["--full"], ["cluster"]):
        monkeypatch.setattr("sys.argv", ["test", *words])
        assert suite.main() == 0 and "tests/cluster" in ran[-1] and "etcd" in ran and "tests/kind" not in ran[-1]
        ran.clear()
    assert "not run kind: no Docker here" in capsys.readouterr().out
    for tool in suite.BUILDS["cluster"]:
        (tmp_path / tool).touch()
    monkeypatch.setattr("sys.argv", ["test"])
    capsys.readouterr()
    assert suite.main() == 0 and "tests/cluster" in ran[-1]
    for test in (long := suite.LONG_TESTS["cluster"]):
        assert f"--deselect={test}" in ran[-1]
        assert f"not run {test}: more than five minutes; " in capsys.readouterr().out
    for words in (["--full"], ["cluster"]):
        monkeypatch.setattr("sys.argv", ["test", *words])
        assert suite.main() == 0 and not [word for word in ran[-1] if str(word).startswith("--deselect")]
    for path, _, name in (test.partition("::") for test in long):
        assert f"def {name}(" in (checkout.ROOT / path).read_text()


def test_the_tests_of_a_file_run_in_one_process_unless_they_share_nothing() -> None:
    """As tests/conftest.py says it: else each process starts what the tests of a file share."""
    files = ["tests/onehost/test_onehost_dns.py", "tests/values/test_schemas.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-n", "2", "--dist", "loadgroup", *files],
        cwd=checkout.ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    ran = {tuple(pair) for pair in re.findall(r"^\[(gw\d)\].* (tests/\S+?)::", done.stdout, re.MULTILINE)}
    processes = Counter(file for _, file in ran)
    assert processes[files[0]] == 1 and processes[files[1]] > 1, done.stdout

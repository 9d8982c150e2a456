"""The policy service as it runs: whole processes, real sockets, a real Envoy; the Kubernetes API is a stand-in."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from policy_bed import ENVOY, MODEL, NAMESPACE, World, engine_text, get, metric, router_text, share, until

from inference_plane.checkout import ROOT
from inference_plane.onehost.processes import Process, Processes, free_port

Start = Callable[..., "Replica"]


class Replica:
    def __init__(self, process: Process, port: int, status: int, config: Path) -> None:
        self.process, self.port, self.status, self.config = process, port, status, config

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.process.log_path.read_text().splitlines()]

    def lines(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        return [line for line in self.log if line["event"] == event and fields.items() <= line.items()]

    @property
    def leading(self) -> bool:
        return metric(self.status, "inference_policy_leading") == 1

    def write(self, config: dict[str, Any]) -> None:
        """As a ConfigMap's mount does it: moved into place."""
        new = self.config.with_suffix(".new")
        new.write_text(json.dumps(config))
        new.rename(self.config)


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


@pytest.fixture
def start(world: World, tmp_path: Path) -> Iterator[Start]:
    with Processes() as processes:

        def start(name: str = "one", *, ready: bool = True, **config: Any) -> Replica:
            port, status, path = free_port(), free_port(), tmp_path / f"{name}.json"
            path.write_text(json.dumps(world.config(port, status, **config)))
            process = processes.start(
                name,
                [sys.executable, "-m", "inference_plane.policy", "--config", path, "--kubernetes", world.kube.url],
                env={"PYTHONPATH": str(ROOT / "src"), "POD_NAME": name, "POD_IP": "127.0.0.1"},
                log_path=tmp_path / f"{name}.log",
                ready=f"http://127.0.0.1:{status}/ready" if ready else None,
            )
            return Replica(process, port, status, path)

        yield start


def test_it_reads_decides_and_answers(world: World, start: Start) -> None:
    one = start()
    assert share(one.port) == 0
    assert json.loads(get(one.status, f"/demand/{MODEL}")[1]) == {"model": MODEL, "demand": 4.0}
    world.router.text = router_text(engines=2, bedrock=8, fleet=24)
    for engine in world.engines:
        engine.text = engine_text(6, 6)
    # 12 run, 8 are at the fallback and would run as well, and one too many waits: 1 - 12 / 21.2.
    until(lambda: share(one.port) == 45, "the share that does not fit")
    assert json.loads(get(one.status, f"/demand/{MODEL}")[1])["demand"] == 32
    assert metric(one.status, f'inference_policy_reason{{model="{MODEL}",reason="queue"}}') == 1
    assert metric(one.status, f'inference_demand{{model="{MODEL}"}}') == 32
    assert "upstream_rq_active" in world.router.queries[-1] and len(ENVOY) > 1000
    (line,) = one.lines("decision", before=0)
    assert line["model"] == MODEL and line["reasons"] == ["queue"] and line["share"] == 45
    event = until(world.kube.events, "an Event")[0]
    assert event["reason"] == "FallbackShareRaised" and event["type"] == "Warning"
    assert event["regarding"] == {
        "apiVersion": "apps/v1", "kind": "Deployment", "namespace": NAMESPACE, "name": MODEL,
    }
    assert event["note"] == (
        f"45 % of the requests to {MODEL} that may leave go to its fallback first: more requests than the engines take"
    )
    world.router.text = router_text(engines=2)
    for engine in world.engines:
        engine.text = engine_text(1, 0)
    until(lambda: share(one.port) == 0, "the share is back at 0")
    until(lambda: [e for e in world.kube.events() if e["reason"] == "FallbackShareEnded"], "the other Event")


def test_a_model_without_a_fallback_has_demand_and_no_share(world: World, start: Start) -> None:
    one = start(model={"fallback": False})
    world.kube.slice(NAMESPACE, MODEL, [])
    world.router.text = router_text(engines=0)
    until(lambda: metric(one.status, f'inference_policy_reason{{model="{MODEL}",reason="no-engine"}}'), "no engine")
    layer = json.loads(get(one.port, "/v3/discovery:runtime", {})[1])["resources"][0]["layer"]
    assert layer == {}
    assert get(one.status, f"/demand/{MODEL}")[0] == 200
    assert world.kube.events() == []


def test_an_empty_fleet_goes_to_the_fallback_whole(world: World, start: Start) -> None:
    one = start()
    world.kube.slice(NAMESPACE, MODEL, [])
    world.kube.pod(NAMESPACE, "summary-1", MODEL, age=120)
    world.kube.pod(NAMESPACE, "summary-headroom", MODEL, age=900, component="headroom")
    world.kube.pod(NAMESPACE, "summary-2", MODEL, age=900, nodeName="it-has-one")
    world.router.text = router_text(engines=0, bedrock=3)
    until(lambda: share(one.port) == 100, "everything goes to the fallback")
    assert metric(one.status, f'inference_policy_pending_pods{{model="{MODEL}"}}') == 1
    assert 118 <= metric(one.status, f'inference_policy_pending_seconds{{model="{MODEL}"}}') < 300
    assert json.loads(get(one.status, f"/demand/{MODEL}")[1])["demand"] == 3


def test_the_other_replica_serves_the_same_and_goes_on_from_there(world: World, start: Start) -> None:
    world.router.text = router_text(engines=2, bedrock=12, fleet=24)
    for engine in world.engines:
        engine.text = engine_text(6, 6)
    one = start("one")
    until(lambda: one.leading and share(one.port) == 50, "the leader's share")
    two = start("two")
    assert not two.leading
    until(lambda: share(two.port) == 50, "the copy")
    asked = len(world.router.queries)
    copies = [get(replica.port, "/v3/discovery:runtime", {})[1] for replica in (one, two)]
    assert copies[0] == copies[1], "replicas that agree name one version"
    assert get(two.status, f"/demand/{MODEL}") == get(one.status, f"/demand/{MODEL}")
    one.process.kill()
    until(lambda: two.leading, "the other takes over")
    until(lambda: len(world.router.queries) > asked + 3, "it reads")
    assert {line["share"] for line in two.lines("decision")} <= {50}, "held while nobody led, and still what is needed"
    assert share(two.port) == 50


def test_sigterm_gives_the_lease_back_and_ends_at_once(world: World, start: Start) -> None:
    one = start("one")
    two = start("two")
    assert one.leading
    until(lambda: share(two.port) == 0, "the copy")
    lease = world.kube.lease(NAMESPACE, "router-policy")
    assert lease["spec"]["holderIdentity"] == f"one_127.0.0.1:{one.port}"
    one.process.popen.send_signal(signal.SIGTERM)
    one.process.popen.wait(10)
    assert one.process.returncode == 0 and one.lines("ended")
    until(lambda: two.leading, "the other leads")
    lease = world.kube.lease(NAMESPACE, "router-policy")
    assert lease["spec"]["holderIdentity"] == f"two_127.0.0.1:{two.port}"
    assert lease["spec"]["leaseTransitions"] == 1


def test_a_hung_engine_delays_nothing_and_garbage_ends_nothing(world: World, start: Start) -> None:
    one = start()
    hung, garbage = world.engines
    hung.hang, garbage.text = True, "<html>not metrics</html>\n"
    until(lambda: len(one.lines("source-failed")) == 2, "both are named")
    kinds = {line["source"].split(" ")[1].split(":")[0]: line["kind"] for line in one.lines("source-failed")}
    assert kinds == {hung.host: "timeout", garbage.host: "garbage"}
    assert metric(one.status, 'inference_policy_sources_failing{source="engine"}') == 2
    asked, ticked = len(hung.queries), len(world.router.queries)
    until(lambda: len(world.router.queries) >= ticked + 20, "the routers are asked all the time")
    assert len(hung.queries) - asked <= 10, "a tick does not wait for the answer that does not come"
    # The routers' word replaces the engines'.
    world.router.text = router_text(engines=2, bedrock=8, fleet=24)
    until(lambda: (share(one.port) or 0) > 0, "it still decides")
    garbage.text = "x" * (5 * 1024 * 1024)
    until(lambda: metric(one.status, 'inference_policy_source_errors_total{kind="size",source="engine"}'), "too large")
    hung.hang, hung.text, garbage.text = False, engine_text(1, 0), engine_text(1, 0)
    until(lambda: len(one.lines("source-back")) == 2, "both are back")
    assert len(one.lines("source-failed")) == 2, "one line each, not one a tick"


@pytest.mark.parametrize("fault", ["gone", "hung", "403"])
def test_without_the_api_the_leader_goes_on(world: World, start: Start, fault: str) -> None:
    one = start()
    if fault == "gone":
        world.kube.stop()
    elif fault == "hung":
        world.kube.hang = True
    else:
        world.kube.fail = 403
    wanted = {f"endpoints of {NAMESPACE}", f"endpoints of {NAMESPACE}/router", f"pods of {NAMESPACE}", "lease"}
    until(lambda: wanted <= {line["source"] for line in one.lines("source-failed")}, "all four are named")
    time.sleep(1.2)  # Until its lists are stale.
    world.router.text = router_text(engines=2, bedrock=12, fleet=24)
    for engine in world.engines:
        engine.text = engine_text(6, 6)
    until(lambda: share(one.port) == 50, "it decides by engines and routers")
    until(lambda: metric(one.status, "inference_policy_lease_held") == 0, "and says that it has no Lease")
    world.kube.hang, world.kube.fail = False, None
    if fault == "gone":
        world.kube.start()
    until(lambda: metric(one.status, "inference_policy_lease_held") == 1, "it has it again")
    assert share(one.port) == 50


def test_without_any_signal_a_share_is_held_and_then_lowered_to_nothing(world: World, start: Start) -> None:
    world.router.text = router_text(engines=2, bedrock=12, fleet=24)
    for engine in world.engines:
        engine.text = engine_text(6, 6)
    one = start()
    until(lambda: share(one.port) == 50, "a share")
    for source in (world.router, world.kube, *world.engines):
        source.stop()
    until(lambda: metric(one.status, f'inference_policy_reason{{model="{MODEL}",reason="signals-lost"}}'), "it says so")
    assert share(one.port) == 50
    until(lambda: share(one.port) == 0, "nothing is held for ever")
    until(lambda: get(one.status, f"/demand/{MODEL}")[0] == 503, "unknown demand is not 0")
    lost = [line["time"] for line in one.lines("decision", reasons=["signals-lost"], share=50)]
    steps = [line["share"] for line in one.lines("decision") if line["time"] > lost[0]]
    assert steps == [40, 30, 20, 10, 0]
    for source in (world.router, world.kube, *world.engines):
        source.start()
    until(lambda: share(one.port) == 50, "it is back")


def test_a_bad_file_leaves_the_last_good_one_in_force(world: World, start: Start) -> None:
    one = start()
    config = world.config(one.port, one.status)
    one.write(config | {"modles": {}})
    (line,) = until(lambda: one.lines("configuration-refused"), "it is refused")
    assert line["error"].startswith("modles: nobody knows this key; known are ")
    assert metric(one.status, "inference_policy_config_errors_total") == 1
    assert share(one.port) == 0
    other = config["models"][MODEL] | {"fleets": ["intake"]}
    one.write(config | {"models": config["models"] | {"intake": other}, "namespace": "elsewhere"})
    until(lambda: get(one.status, "/demand/intake")[0] == 200, "the new model")
    assert one.lines("restart-needed")[0]["keys"] == ["namespace"]


def test_a_wrong_start_says_what_to_set(tmp_path: Path) -> None:
    def run(*arguments: Any) -> str:
        result = subprocess.run(
            [sys.executable, "-m", "inference_plane.policy", *arguments],
            env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, timeout=60, check=False,
        )
        assert result.returncode == 1
        return result.stderr

    missing = tmp_path / "no.json"
    assert run("--config", missing) == (
        f"error: {missing}: No such file or directory; give --config the file that Helm rendered\n"
    )
    (tmp_path / "p.json").write_text(json.dumps(World().config()))
    assert run("--config", tmp_path / "p.json") == (
        "error: 'KUBERNETES_SERVICE_HOST' is not set, so this is no pod and there is no API server to ask. "
        "Give --kubernetes http://127.0.0.1:8001 beside kubectl proxy\n"
    )


def test_a_real_envoy_takes_the_shares_and_keeps_the_last_ones(world: World, start: Start, tmp_path: Path) -> None:
    one = start()
    admin = free_port()
    address = {"socket_address": {"address": "127.0.0.1", "port_value": one.port}}
    rest = {"api_type": "REST", "transport_api_version": "V3", "cluster_names": ["policy"], "refresh_delay": "0.2s"}
    bootstrap = {
        "node": {"id": "router", "cluster": "plane"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
        "layered_runtime": {
            "layers": [
                {
                    "name": "policy",
                    "rtds_layer": {
                        "name": "policy",
                        "rtds_config": {"resource_api_version": "V3", "api_config_source": rest},
                    },
                }
            ]
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "policy",
                    "type": "STATIC",
                    "load_assignment": {
                        "cluster_name": "policy",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
                    },
                }
            ]
        },
    }
    (tmp_path / "envoy.json").write_text(json.dumps(bootstrap))

    def runtime() -> Any:
        status, text = get(admin, "/runtime")
        return json.loads(text)["entries"].get(f"fallback.{MODEL}", {}).get("final_value") if status == 200 else None

    with Processes() as processes:
        processes.start(
            "envoy",
            [shutil.which("envoy") or "envoy", "--config-path", tmp_path / "envoy.json"]
            + ["--disable-hot-restart", "--concurrency", "1"],
            log_path=tmp_path / "envoy.log",
            ready=f"http://127.0.0.1:{admin}/ready",
        )
        until(lambda: runtime() == "0", "the share before anything happened")
        world.kube.slice(NAMESPACE, MODEL, [])
        until(lambda: runtime() == "100", "an empty fleet's")
        time.sleep(1)  # Some polls that bring nothing new.
        lines = get(admin, "/stats?filter=^runtime")[1].strip().splitlines()
        counts = {name: value for name, _, value in (line.partition(": ") for line in lines)}
        assert (counts["runtime.update_rejected"], counts["runtime.update_failure"]) == ("0", "0")
        assert int(counts["runtime.update_success"]) < int(counts["runtime.update_attempt"]), "the others were 304"
        one.process.kill()
        time.sleep(1)
        assert runtime() == "100", "the last state stays when the service dies"

"""TLS between replicas, and towards whoever asks one: whole processes; the routers' side is in tests/router."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from metrics_harness import POLICY, exposed
from policy_bed import NAMESPACE, World, engine_text, get, metric, router_text, until

from inference_plane.checkout import ROOT
from inference_plane.onehost.issuer import Authority
from inference_plane.onehost.processes import Process, Processes, free_port
from inference_plane.onehost.secrets import mount

HOST = "router-policy.inference.svc.cluster.local"
AUTHORITY = Authority()


class Replica:
    """One that has a Secret of its own; without one it speaks plain HTTP."""

    def __init__(self, processes: Processes, world: World, folder: Path, name: str, secret: dict[str, str] | None) -> None:
        self.port, self.status, self.secrets = free_port(), free_port(), folder / name
        config = world.config(self.port, self.status)
        if secret:
            self.put(secret)
            paths = {"certificate": "tls.crt", "key": "tls.key", "ca": "ca.crt"}
            config["tls"] = {"name": HOST} | {key: str(self.secrets / file) for key, file in paths.items()}
        (folder / f"{name}.json").write_text(json.dumps(config))
        self.process: Process = processes.start(
            name,
            [sys.executable, "-m", "inference_plane.policy", "--config", folder / f"{name}.json"]
            + ["--kubernetes", world.kube.url],
            env={"PYTHONPATH": str(ROOT / "src"), "POD_NAME": name, "POD_IP": "127.0.0.1"},
            log_path=folder / f"{name}.log",
            ready=f"http://127.0.0.1:{self.status}/live",
        )

    def put(self, secret: dict[str, str]) -> None:
        mount(self.secrets, secret)

    def lines(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.process.log_path.read_text().splitlines()]
        return [line for line in lines if line["event"] == event]

    @property
    def leading(self) -> bool:
        return metric(self.status, "inference_policy_leading") == 1

    def shares(self, pem: str = AUTHORITY.pem, name: str = HOST) -> dict[str, int]:
        """What a router is given that believes this authority and asks for this name; nothing before there is a state."""
        with self._connected(ssl.create_default_context(cadata=pem), name) as connection:
            connection.sendall(b"POST /v3/discovery:runtime HTTP/1.0\r\ncontent-length: 2\r\n\r\n{}")
            reply = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, body = reply.partition(b"\r\n\r\n")
        return json.loads(body)["resources"][0]["layer"] if b" 200 " in head.splitlines()[0] else {}

    def served(self) -> str:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with self._connected(context, HOST) as connection:
            return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True))

    def _connected(self, context: ssl.SSLContext, name: str) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        try:
            return context.wrap_socket(plain, server_hostname=name)
        except BaseException:
            plain.close()
            raise


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


Start = Callable[..., Replica]


@pytest.fixture
def start(world: World, tmp_path: Path) -> Iterator[Start]:
    with Processes() as processes:
        yield lambda name, secret=None: Replica(processes, world, tmp_path, name, secret)



def test_who_verifies_gets_shares_and_who_is_told_another_name_does_not(start: Start) -> None:
    one = start("one", AUTHORITY.secret(HOST))
    until(lambda: get(one.status, "/ready")[0] == 200, "it is ready")
    assert one.shares() == {"fallback.summary": 0}
    for pem, name in ((Authority("another").pem, HOST), (AUTHORITY.pem, "router.inference.svc.cluster.local")):
        with pytest.raises(ssl.SSLCertVerificationError):
            one.shares(pem, name)
    assert get(one.port, "/v3/discovery:runtime", {}) == (0, ""), "nothing in clear text"
    old = ssl.create_default_context(cadata=AUTHORITY.pem)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        one._connected(old, HOST)


def test_each_port_has_its_own_questions(start: Start) -> None:
    """No router takes what is said in clear text, and nobody else gets at what routers take."""
    one = start("one", AUTHORITY.secret(HOST))
    until(lambda: get(one.status, "/ready")[0] == 200, "it is ready")
    assert get(one.status, "/v3/discovery:runtime", {})[0] == 404 and get(one.status, "/v1/state")[0] == 404
    assert get(one.status, "/demand/summary")[0] == 200
    plain = start("plain")
    assert get(plain.port, "/demand/summary")[0] == 404 and get(plain.port, "/metrics")[0] == 404


def test_a_replica_copies_from_one_that_proves_its_name(world: World, start: Start) -> None:
    world.router.text = router_text(engines=2, bedrock=12, fleet=24)
    for engine in world.engines:
        engine.text = engine_text(6, 6)
    one = start("one", AUTHORITY.secret(HOST))
    until(lambda: one.leading and one.shares().get("fallback.summary", 0) > 0, "the leader's share")
    two = start("two", AUTHORITY.secret(HOST))
    until(lambda: get(two.status, "/ready")[0] == 200, "a copy")
    assert two.shares() == one.shares() and not two.leading
    lease = world.kube.lease(NAMESPACE, "router-policy")
    assert lease["spec"]["holderIdentity"] == f"one_https://127.0.0.1:{one.port}"


@pytest.mark.parametrize("what", ["another authority's", "of another name"])
def test_a_leader_that_proves_nothing_is_not_copied(start: Start, what: str) -> None:
    one = start("one", AUTHORITY.secret(HOST) if what == "another authority's" else AUTHORITY.secret(f"other.{HOST}"))
    until(lambda: one.leading, "it leads")
    two = start("two", (Authority("another") if what == "another authority's" else AUTHORITY).secret(HOST))
    (line,) = until(lambda: two.lines("source-failed"), "it says so")
    assert (line["source"], line["kind"]) == ("leader", "connection")
    assert "CERTIFICATE_VERIFY_FAILED" in line["error"]
    assert get(two.status, "/ready") == (503, "no state yet: neither decided nor copied from the leader\n")


def test_a_renewed_certificate_is_served_and_a_bad_one_is_not(start: Start) -> None:
    one = start("one", AUTHORITY.secret(HOST))
    assert 0 < metric(one.status, "inference_policy_certificate_end_seconds") - time.time() < 86400
    for _ in range(3):
        secret = AUTHORITY.secret(HOST)
        one.put(secret)
        until(lambda s=secret: one.served() == s["tls.crt"], "the new one is served")
    assert len(one.lines("certificate-read")) == 3
    one.put({**AUTHORITY.secret(HOST), "tls.key": secret["tls.key"]})
    (line,) = until(lambda: one.lines("source-failed"), "it says so")
    assert line["source"] == "certificate" and line["error"].endswith(". Set both in the Secret")
    assert metric(one.status, 'inference_policy_sources_failing{source="certificate"}') == 1
    assert one.served() == secret["tls.crt"]
    ended = AUTHORITY.secret(HOST, ended=True)
    one.put(ended)
    until(lambda: one.served() == ended["tls.crt"], "what the Secret says is served, old as it is")
    assert one.lines("source-back")
    until(lambda: metric(one.status, "inference_policy_certificate_end_seconds") < time.time(), "and its end is told")


def test_the_capture_is_what_a_leader_shows(world: World, start: Start, update_golden: bool) -> None:
    """Alerts are held to it."""
    one = start("one", AUTHORITY.secret(HOST))
    until(lambda: one.leading and one.shares() == {"fallback.summary": 0}, "it has decided")
    world.engines[0].text = "no metrics"
    until(lambda: metric(one.status, 'inference_policy_sources_failing{source="engine"}') == 1, "a source fails")
    text = get(one.status, "/metrics")[1]
    if update_golden:
        POLICY.write_text(text)
    live, kept = ({tuple(sorted(series.items())) for series in exposed(t)} for t in (text, POLICY.read_text()))
    assert live == kept, f"new {sorted(live - kept)[:5]}, gone {sorted(kept - live)[:5]}"


def test_what_was_never_read_is_as_old_as_the_lead(world: World, start: Start) -> None:
    world.router.stop()
    one = start("one", AUTHORITY.secret(HOST))
    age = 'inference_policy_signal_age_seconds{source="routers"}'
    until(lambda: (metric(one.status, age) or 0) > 1, "it gets older")
    world.router.start()
    until(lambda: metric(one.status, age) < 1, "it is read")


def test_another_authority_is_believed_without_a_restart(start: Start) -> None:
    heir = Authority("heir")
    one = start("one", AUTHORITY.secret(HOST))
    until(lambda: one.leading, "it leads")
    two = start("two", heir.secret(HOST))
    until(lambda: two.lines("source-failed"), "it does not believe the leader")
    two.put({**heir.secret(HOST), "ca.crt": AUTHORITY.pem + heir.pem})
    until(lambda: get(two.status, "/ready")[0] == 200, "now it does")


@pytest.mark.parametrize("leader", ["without", "with"])
def test_a_rollout_that_switches_tls_goes_on(start: Start, leader: str) -> None:
    """The new replica cannot copy from the old ones, and they leave only once it is ready."""
    one = start("one", AUTHORITY.secret(HOST) if leader == "with" else None)
    until(lambda: one.leading, "it leads")
    two = start("two", None if leader == "with" else AUTHORITY.secret(HOST))
    until(lambda: get(two.status, "/ready")[0] == 200, "ready, so that the rollout goes on")
    assert two.lines("leader-apart")[0]["leader"].endswith(f"127.0.0.1:{one.port}")
    if leader == "with":
        assert get(two.port, "/v3/discovery:runtime", {})[0] == 503, "routers keep what they have until it leads"
    one.process.popen.terminate()
    until(lambda: two.leading, "it leads in its turn")
    until(lambda: metric(two.status, 'inference_policy_share{model="summary"}') is not None, "and decides")


def test_a_start_without_a_certificate_says_what_to_set(world: World, tmp_path: Path) -> None:
    config = world.config() | {"tls": {"certificate": "no/tls.crt", "key": "no/tls.key", "ca": "no/ca.crt", "name": HOST}}
    (tmp_path / "p.json").write_text(json.dumps(config))
    result = subprocess.run(
        [sys.executable, "-m", "inference_plane.policy", "--config", "p.json", "--kubernetes", world.kube.url],
        env={"PYTHONPATH": str(ROOT / "src")}, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )
    assert result.returncode == 1
    assert result.stderr == (
        "error: no/tls.crt: No such file or directory. Put tls.crt, tls.key and ca.crt into the Secret\n"
    )

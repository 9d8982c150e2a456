"""TLS in the manifests: who has which certificate, whom Envoy believes, and what is refused."""

import json
import pathlib

import pytest
import yaml

from inference_plane import helm
from inference_plane.checkout import CHARTS
from inference_plane.environments import environments
from inference_plane.manifests import check
from inference_plane.manifests.kserve import deployments
from inference_plane.manifests.relations import check_relations
from inference_plane.onehost.router import xds_files

ARN = "arn:aws:acm:eu-central-1:111122223333:certificate/0d2f4a1e-6b7c-4d8e-9f10-2a3b4c5d6e7f"
BASE = {
    "global": {
        "aws": {"region": "eu-central-1"},
        "network": {"albSubnetCidrs": ["10.0.0.0/20"], "s3Cidrs": ["10.0.64.0/20"]},
        "models": {
            "records": {
                "source": "s3://models/records/v1/",
                "weightsGiB": 15.3,
                "accelerator": "l40s",
                "maxModelLen": 4096,
                "canary": {"source": "s3://models/records/v2/", "percent": 10},
            },
            "drafts": {
                "source": "s3://models/drafts/v1/",
                "weightsGiB": 15.3,
                "accelerator": "l40s",
                "maxModelLen": 4096,
                "namespace": "care",
                "engine": "kserve",
            },
        },
    },
    "router": {"auth": {"mode": "none"}},
    "alb-ingress": {
        "enabled": True,
        "inbound": {"cidrs": ["10.0.0.0/8"]},
        "tls": {"certificateArns": [ARN]},
    },
}  # fmt: skip
ISSUED = {"mode": "certManager", "certManager": {"issuerRef": {"name": "internal"}}}
GIVEN = {"mode": "secrets", "secretNames": {"records": "given"}}
SERVICES = {"router": "inference", "records": "inference", "records-canary": "inference", "drafts": "care"}
HOSTS = {name: f"{name}.{namespace}.svc.cluster.local" for name, namespace in SERVICES.items()}


def render(tls, **more):
    return helm.template("inference-plane", values=BASE | more | {"global": BASE["global"] | {"tls": tls}})


def pods(rendered):
    """(name, spec) of every pod, KServe's too."""
    for o in [*rendered.objects, *deployments(rendered.objects)]:
        if o["kind"] == "Pod":
            yield o["metadata"]["name"], o["spec"]
        elif o["kind"] == "Deployment":
            yield o["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"], o["spec"]["template"]["spec"]


def containers(spec):
    return {c["name"]: c for c in [*spec["containers"], *spec.get("initContainers", [])]}


def clusters(rendered):
    data = xds_files(rendered)
    return {c["name"]: c for c in json.loads(data["clusters.json"])["resources"]}


def test_every_server_has_a_certificate_of_its_own_for_the_names_it_is_called_by():
    issued = render(ISSUED).of_kind("Certificate")
    names = {c["metadata"]["name"]: (c["metadata"]["namespace"], c["spec"]) for c in issued}
    assert {name: namespace for name, (namespace, _) in names.items()} == SERVICES
    for name, (_, spec) in names.items():
        assert spec["secretName"] == f"{name}-tls"
        assert spec["issuerRef"] == {"group": "cert-manager.io", "kind": "ClusterIssuer", "name": "internal"}
        assert spec["usages"] == ["digital signature", "server auth"]
        assert (spec["duration"], spec["renewBefore"]) == ("2160h", "720h")
        assert spec["privateKey"] == {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"}
        callers = ["router", "router.inference", "router.inference.svc"] if name == "router" else []
        assert spec["dnsNames"] == [*callers, HOSTS[name]]


def test_another_issuer_and_other_times():
    tls = {
        "mode": "certManager",
        "certManager": {
            "issuerRef": {"group": "awspca.cert-manager.io", "kind": "AWSPCAClusterIssuer", "name": "pca"},
            "duration": "24h",
            "renewBefore": "8h",
        },
    }
    for certificate in render(tls).of_kind("Certificate"):
        assert certificate["spec"]["issuerRef"] == tls["certManager"]["issuerRef"]
        assert (certificate["spec"]["duration"], certificate["spec"]["renewBefore"]) == ("24h", "8h")


@pytest.mark.parametrize("tls", [ISSUED, GIVEN], ids=lambda tls: tls["mode"])
def test_the_router_calls_each_engine_by_the_name_that_it_has_to_prove(tls):
    found = clusters(render(tls))
    assert {name.removeprefix("fleet/") for name in found} == set(SERVICES) - {"router"}
    for name, cluster in found.items():
        host = HOSTS[name.removeprefix("fleet/")]
        context = cluster["transport_socket"]["typed_config"]
        common = context["common_tls_context"]
        validation = common["combined_validation_context"]
        assert context["sni"] == host
        assert validation["default_validation_context"] == {
            "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": host}}]
        }
        assert validation["validation_context_sds_secret_config"]["name"] == "ca"
        assert common["tls_params"]["tls_minimum_protocol_version"] == "TLSv1_3"
        (engines,), (nobody,) = (group["lb_endpoints"] for group in cluster["load_assignment"]["endpoints"])
        assert engines["endpoint"]["address"]["socket_address"]["address"] == host and "metadata" not in engines


def test_nothing_but_loopback_is_exempt_in_any_environment():
    """Whoever is not marked gets TLS, so that forgetting the mark fails closed."""
    seen = 0
    for path in environments():
        values = yaml.safe_load(path.read_text())
        for name, cluster in clusters(helm.template("inference-plane", values=values)).items():
            if values["global"]["tls"]["mode"] == "none" or not name.startswith("fleet/"):
                continue
            seen += 1
            (match,) = cluster["transport_socket_matches"]
            assert "UpstreamTlsContext" in cluster["transport_socket"]["typed_config"]["@type"]
            for group in cluster["load_assignment"]["endpoints"]:
                for endpoint in group["lb_endpoints"]:
                    marks = endpoint.get("metadata", {}).get("filter_metadata", {})
                    exempt = marks.get("envoy.transport_socket_match") == match["match"]
                    address = endpoint["endpoint"]["address"]["socket_address"]["address"]
                    assert exempt is (address == "127.0.0.1")
    assert seen > 10


def test_without_tls_nothing_of_it_is_left():
    rendered = render({"mode": "none"})
    assert not rendered.of_kind("Certificate")
    assert "transport_socket" not in xds_files(rendered)["clusters.json"]
    data = rendered.find("ConfigMap", "router-bootstrap")["data"]
    assert "DownstreamTlsContext" not in data["bootstrap.json"] and not [name for name in data if "sds" in name]
    for _, spec in pods(rendered):
        assert not [volume for volume in spec.get("volumes", []) if "secret" in volume]
        assert "certificate" not in containers(spec)
        assert "ssl" not in json.dumps(spec)
    (port, _) = rendered.find("Service", "router")["spec"]["ports"]
    assert (port["name"], port["port"], port["appProtocol"]) == ("http", 80, "http")


#: Which containers see a private key, and which only whom to believe.
KEYS = {"router": {"envoy"}, "records": {"certificate"}, "records-canary": {"certificate"}, "drafts": {"certificate"}}
AUTHORITIES = {
    "router": {"envoy"}, "router-test": {"curl"}, "records": {"metrics"}, "records-canary": {"metrics"},
    "drafts": {"metrics"},
}  # fmt: skip


@pytest.mark.parametrize("tls", [ISSUED, GIVEN], ids=lambda tls: tls["mode"])
def test_a_key_is_mounted_where_it_is_used_and_nowhere_else(tls):
    keys, authorities, copies = {}, {}, {}
    for name, spec in pods(render(tls)):
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        for container in containers(spec).values():
            for mount in container.get("volumeMounts", []):
                volume = volumes[mount["name"]]
                for item in volume.get("secret", {}).get("items", []):
                    assert mount["readOnly"] is True
                    {"tls.key": keys, "ca.crt": authorities}.get(item["key"], {}).setdefault(name, set()).add(
                        container["name"])
                if "secret" in volume:
                    assert volume["secret"]["items"], "a whole Secret has the key too"
                if mount["name"] == "tls":
                    copies.setdefault(name, {})[container["name"]] = mount.get("readOnly", False)
        # In memory, never on a node's disk.
        for volume in volumes.values():
            if volume["name"] == "tls":
                assert volume["emptyDir"]["medium"] == "Memory"
    assert (keys, authorities) == (KEYS, AUTHORITIES)
    engine = {name: "kserve-container" if name == "drafts" else "vllm" for name in KEYS if name != "router"}
    assert copies == {name: {"certificate": False, container: True} for name, container in engine.items()}


def test_an_engine_serves_by_what_is_copied_and_its_metrics_port_asks_it_by_name():
    for name, spec in pods(render(ISSUED)):
        if name not in HOSTS or name == "router":
            continue
        found = containers(spec)
        engine = found["kserve-container" if name == "drafts" else "vllm"]
        folder = "/etc/inference-plane/tls"
        for flag in (f"--ssl-certfile={folder}/tls.crt", f"--ssl-keyfile={folder}/tls.key", "--enable-ssl-refresh"):
            assert flag in engine["args"]
        assert f"--target={folder}" in found["certificate"]["args"]
        for kind in ("startup", "readiness", "liveness"):
            assert engine[f"{kind}Probe"]["httpGet"] == {"path": "/health", "port": "http", "scheme": "HTTPS"}
        assert f"--engine-name={HOSTS[name]}" in found["metrics"]["args"]
        # The engine's own start waits for the first copy.
        names = [container["name"] for container in spec["initContainers"]]
        assert "certificate" in names and found["certificate"]["restartPolicy"] == "Always"
        assert found["certificate"]["startupProbe"]["exec"]["command"][-1] == f"{folder}/tls.key"


def test_given_secrets_have_their_names_and_a_bundle_comes_first():
    secrets = {}
    for name, spec in pods(render(GIVEN | {"caConfigMap": "authorities"})):
        for volume in spec.get("volumes", []):
            if "secret" in volume:
                assert volume["name"] == "certificate"
                secrets[name] = volume["secret"]["secretName"]
            if volume["name"] == "ca":
                assert volume["configMap"] == {"name": "authorities", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    assert secrets == {
        "router": "router-tls", "records": "given", "records-canary": "records-canary-tls", "drafts": "drafts-tls",
    }  # fmt: skip


def test_a_secret_that_nobody_makes_is_found():
    rendered = render(GIVEN).objects
    findings = [f for f in check_relations(rendered, namespace="inference") if f.rule == "references"]
    found = {f.message.split(" is not")[0] for f in findings}
    assert found == {"Secret inference/router-tls", "Secret inference/given", "Secret inference/records-canary-tls"}
    assert [str(finding) for finding in check(render(ISSUED).objects)] == []


def test_the_listener_and_its_service():
    rendered = render(ISSUED)
    bootstrap = json.loads(rendered.find("ConfigMap", "router-bootstrap")["data"]["bootstrap.json"])
    listeners = {one["name"]: one["filter_chains"][0] for one in bootstrap["static_resources"]["listeners"]}
    assert {name for name, chain in listeners.items() if "transport_socket" in chain} == {"plane"}
    common = listeners["plane"]["transport_socket"]["typed_config"]["common_tls_context"]
    assert common["alpn_protocols"] == ["h2", "http/1.1"]
    assert common["tls_params"] == {"tls_minimum_protocol_version": "TLSv1_2"}
    ports = rendered.find("Service", "router")["spec"]["ports"]
    found = {port["name"]: (port["port"], port["appProtocol"]) for port in ports}
    assert found == {"https": (443, "https"), "status": (8081, "http")}


@pytest.mark.parametrize(("tls", "protocol", "port"), [(ISSUED, "HTTPS", 443), ({"mode": "none"}, "HTTP", 80)])
def test_the_load_balancer_speaks_what_the_router_does(tls, protocol, port):
    (ingress,) = render(tls).of_kind("Ingress")
    said = {key.rpartition("/")[2]: value for key, value in ingress["metadata"]["annotations"].items()}
    assert said["backend-protocol"] == protocol
    assert (said["healthcheck-protocol"], said["healthcheck-port"]) == ("HTTP", "8081")
    (rule,) = ingress["spec"]["rules"]
    assert rule["http"]["paths"][0]["backend"]["service"]["port"] == {"name": protocol.lower()}
    gateway = render(tls, **{"alb-ingress": BASE["alb-ingress"] | {"mode": "gateway"}})
    target = gateway.find("TargetGroupConfiguration", "router")["spec"]["defaultConfiguration"]
    assert (target["protocol"], target["healthCheckConfig"]["healthCheckProtocol"]) == (protocol, "HTTP")
    assert gateway.find("HTTPRoute", "router")["spec"]["rules"][0]["backendRefs"] == [{"name": "router", "port": port}]


UNDECIDED = (
    "- global.tls.mode: not decided. Without TLS prompts cross the network in clear text between load balancer, router "
    "and engines. Set certManager with certManager.issuerRef.name, secrets with Secrets of your own, or none for clear "
    "text."
)
REFUSALS = {
    "no issuer": (
        {"mode": "certManager"},
        "- global.tls.certManager.issuerRef.name: empty, while tls.mode is certManager. Nobody would sign the "
        "certificates, and no pod starts without its own. Set the name of a ClusterIssuer, or of another issuer with "
        "its kind and group.",
    ),
    "a certificate of minutes": (
        {"mode": "certManager", "certManager": {"issuerRef": {"name": "i"}, "duration": "30m", "renewBefore": "10m"}},
        "- global.tls.certManager.duration: 30m is less than 1h. cert-manager refuses such a Certificate. Set 1h or "
        "more.",
    ),
    "renewed too late": (
        {"mode": "certManager", "certManager": {"issuerRef": {"name": "i"}, "renewBefore": "4m"}},
        "- global.tls.certManager.renewBefore: 4m is less than 5m. cert-manager refuses such a Certificate, and pods "
        "see a new one within two minutes at best. Set 5m or more.",
    ),
    "renewed at once": (
        {"mode": "certManager", "certManager": {"issuerRef": {"name": "i"}, "duration": "720h"}},
        "- global.tls.certManager.renewBefore: 720h is not below duration 720h. Each certificate would be renewed as "
        "soon as it is made. Set a shorter renewBefore, or a longer duration.",
    ),
    "a Secret of nobody": (
        {"mode": "secrets", "secretNames": {"recods": "given"}},
        "- global.tls.secretNames.recods: none of router, router-policy, router-ratelimit, router-valkey, drafts, "
        "records, records-canary. Each Secret is of one Service. Set the Service's own name: a model's is MODEL, and its "
        "canary's MODEL-canary.",
    ),
    "a Secret that nobody reads": (
        {"mode": "none", "secretNames": {"router": "given"}},
        "- global.tls.secretNames.router: given, while tls.mode is none. Nobody would read that Secret. Set mode: "
        "secrets, or take the name out.",
    ),
}


def refused(chart, values):
    with pytest.raises(helm.HelmError) as error:
        helm.template(chart, values=values)
    return [line for line in str(error.value).splitlines() if line.startswith("- ")]


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_go_together_is_refused_with_what_to_set(name):
    tls, text = REFUSALS[name]
    assert refused("router", {"global": BASE["global"] | {"tls": tls}, "auth": {"mode": "none"}}) == [text]


@pytest.mark.parametrize("chart", ["router", "vllm", "kserve", "alb-ingress", "inference-plane"])
def test_an_install_that_does_not_decide_is_refused(chart):
    own = {"router": BASE["router"], "alb-ingress": BASE["alb-ingress"], "inference-plane": BASE}.get(chart, {})
    own = {key: value for key, value in own.items() if key not in ("global", "enabled") or chart == "inference-plane"}
    assert refused(chart, {**own, "global": BASE["global"]}) == [UNDECIDED]


def test_nodes_need_no_decision():
    values = yaml.safe_load(pathlib.Path(CHARTS / "karpenter-nodepools" / "ci" / "gpu-values.yaml").read_text())
    del values["global"]["tls"]
    assert helm.template("karpenter-nodepools", values=values).of_kind("NodePool")

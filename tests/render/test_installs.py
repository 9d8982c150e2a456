"""Every environment and every ci/ file: renders, is valid, and fits together."""

import time

import pytest
import yaml

from inference_plane import helm, packages
from inference_plane.checkout import CHARTS, INSTALLABLE, ROOT
from inference_plane.compliance.sources import brought
from inference_plane.environments import cases, chart_values
from inference_plane.manifests import check
from inference_plane.manifests.kserve import deployments

CASES = cases()
IDS = [case.name for case in CASES]

#: What a file for engines alone does not say of their nodes.
NODES = {
    "nodeClass": {"role": "nodes", "subnetTags": {"tier": "private"}, "securityGroupTags": {"for": "nodes"}},
    "ec2": {"amiAlias": "bottlerocket@1.46.0"},
    "dataVolume": {"sizeGiB": 1000},
}

#: What another release renders, by chart.
EXTERNAL = {"alb-ingress": ["Service inference/router"]}


def external(case):
    """What somebody else makes: another release, trust-manager, or whoever brings Secrets."""
    return [*EXTERNAL.get(case.chart, ()), *brought(case.values, "inference")]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_every_object_is_what_the_api_server_takes_and_fits_the_others(case):
    render = helm.template(case.chart, values=case.values)
    engines = {model.get("engine") for model in case.values["global"].get("models", {}).values()}
    assert render.objects or (case.chart == "kserve" and "kserve" not in engines)
    assert [str(finding) for finding in check(render.objects, external=external(case))] == []


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_helm_lint_finds_nothing(case, tmp_path):
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(case.values))
    printed = helm.run("lint", "--strict", "--quiet", "--values", str(values), str(CHARTS / case.chart))
    assert "[WARNING]" not in printed and "[ERROR]" not in printed


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_every_flow_of_a_policy_names_its_peers_and_its_ports(case):
    """Kubernetes takes an absent list of peers for everybody, and an absent list of ports for every port."""
    for policy in helm.template(case.chart, values=case.values).of_kind("NetworkPolicy"):
        spec, name = policy["spec"], policy["metadata"]["name"]
        assert spec["podSelector"]["matchLabels"] and set(spec["policyTypes"]) == {"Ingress", "Egress"}, name
        if "helm.sh/hook" in policy["metadata"].get("annotations", {}):
            continue  # The stranger of `helm test` tries ports that are none of its business.
        for rule in [*spec.get("ingress", []), *spec.get("egress", [])]:
            assert rule.get("from") or rule.get("to"), (name, rule)
            assert rule.get("ports") and all(port.get("port") for port in rule["ports"]), (name, rule)
        for peer in [peer for rule in spec.get("egress", []) for peer in rule["to"]]:
            # Nothing is called that is not one kind of pod or an address.
            assert peer.get("podSelector", {}).get("matchLabels") or peer.get("ipBlock"), (name, peer)
            assert not peer.get("ipBlock", {}).get("cidr", "").endswith("/0"), (name, peer)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_no_render_uses_names_that_kserves_webhook_rewrites(case):
    """Argo CD would find a difference after each synchronisation, for ever."""
    text = helm.template(case.chart, values=case.values).text
    assert "RawDeployment" not in text and "Serverless" not in text


#: Programs that need a writable root, and why.
NVIDIA = "the NVIDIA container runtime writes links to its libraries there"
WRITABLE = {"vllm": NVIDIA, "kserve-container": NVIDIA}


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_no_container_can_write_its_root_but_where_the_reason_is_known(case):
    rendered = helm.template(case.chart, values=case.values).objects
    for document in [*rendered, *deployments(rendered)]:
        spec = document.get("spec", {})
        pod = spec if document["kind"] == "Pod" else spec.get("template", {}).get("spec") or {}
        # A NodePool has a template too: of nodes.
        for container in [*pod.get("containers", []), *pod.get("initContainers", [])]:
            context = container["securityContext"]
            known = container["name"] in WRITABLE and "nvidia.com/gpu" in container["resources"]["limits"]
            assert context["readOnlyRootFilesystem"] is not known, (document["metadata"]["name"], container["name"])


@pytest.mark.parametrize("case", [case for case in CASES if "/ci/" not in case.name], ids=lambda case: case.name)
def test_a_chart_alone_renders_what_the_umbrella_renders_of_it(case):
    """Splitting an environment over several releases changes no object but for the chart's own name in labels."""
    if case.chart == "inference-plane":
        parts = [other for other in CASES if other.name.split("/")[0] == case.name.split("/")[0]]
        assert {"router", "vllm"} < {other.chart for other in parts} <= set(INSTALLABLE)
        return
    environment = next(c for c in CASES if c.name == f"{case.name.split('/')[0]}/inference-plane")
    whole = [o for o in helm.template("inference-plane", values=environment.values).objects]
    for rendered in helm.template(case.chart, values=case.values).objects:
        assert rendered in whole


def seconds(duration):
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_node_stays_as_long_as_its_engines_drain(case):
    """The engines and the pools of one catalogue, whichever of them the file is for; Spot gives two minutes."""
    whole = case.values if case.chart == "inference-plane" else {"global": case.values["global"]}
    parts = {c: case.values if case.chart == c else chart_values(whole, c) for c in ("vllm", "kserve")}
    nodes = case.values if case.chart == "karpenter-nodepools" else chart_values(whole, "karpenter-nodepools")
    nodes = nodes if "nodeClass" in nodes else NODES | nodes
    rendered = [o for chart, part in parts.items() for o in helm.template(chart, values=part).objects]
    engines = [o for o in [*rendered, *deployments(rendered)] if o["kind"] == "Deployment"]
    drains = [engine["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] for engine in engines]
    pools = [pool["spec"] for pool in helm.template("karpenter-nodepools", values=nodes).of_kind("NodePool")]
    assert pools or not any("tolerations" in engine["spec"]["template"]["spec"] for engine in engines)
    for pool in pools:
        assert max(drains) <= seconds(pool["template"]["spec"]["terminationGracePeriod"])
        capacity = next(r for r in pool["template"]["spec"]["requirements"] if r["key"] == "karpenter.sh/capacity-type")
        assert "spot" not in capacity["values"] or max(drains) <= 100


@pytest.mark.parametrize("chart", INSTALLABLE)
def test_a_clean_clone_renders_with_no_prior_step(chart, tmp_path):
    """As Argo CD and a pull request do it: a checkout, and helm template."""
    packages.export(ROOT, tmp_path, dirty=True)
    for values in sorted((tmp_path / "charts" / chart / "ci").glob("*-values.yaml")):
        started = time.monotonic()
        assert "kind: " in helm.run("template", "plane", str(tmp_path / "charts" / chart), "--values", str(values))
        print(f"{chart} {values.name}: {time.monotonic() - started:.2f} s")

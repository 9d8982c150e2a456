"""Nodes that leave and nodes that stay: the real Karpenter on the rendered pools, with the pace set by values."""

import datetime
import urllib.request

import pytest
import yaml
from cluster_harness import Release
from karpenter_harness import all_ready, compiled, label, model, pods, running, said, scale

from inference_plane import checkout, helm
from inference_plane.cluster import karpenter
from inference_plane.cluster.aws import Account
from inference_plane.cluster.diagnose import condition, ready
from inference_plane.cluster.nodes import whole
from inference_plane.environments import chart_values
from inference_plane.helm import KUBERNETES_VERSION
from inference_plane.manifests.kserve import deployments
from inference_plane.onehost.processes import free_port

NODES = yaml.safe_load((checkout.VALUES / "prod.yaml").read_text())["karpenter-nodepools"]
AMIS = ("1.46.0", "1.47.0")

#: The shortest that the chart allows: a node ends its pods that long before its own end.
DRAIN = {"endpointStalenessSeconds": 10, "shutdownTimeoutSeconds": 1, "bufferSeconds": 5}

#: Interactive models, each on an accelerator of its own. Two replicas or more have a disruption budget, one has
#: karpenter.sh/do-not-disrupt. `whole` fills a node with each replica, `idle` uses an eighth of one.
INTERACTIVE = {
    "whole": model("a100-80", tensorParallelSize=8, replicas={"min": 3}),
    "idle": model("h100", replicas={"min": 2}),
    "neuron": compiled("inferentia2", 2) | {"replicas": {"min": 2}},
    "only": model("l40s", replicas={"min": 1}),
}
POOL = {name: f"day-{entry['accelerator']}-interactive" for name, entry in INTERACTIVE.items()}

#: Batch on nodes with eight accelerators: enough of them to leave some nodes nearly empty.
BATCH = {"sheets": model("a100-40", traffic="batch", replicas={"min": 2}), "ledger": model("a100-40", traffic="batch")}


ONE_ZONE = {"for": "batch"}
METRICS_PORT = free_port()


def values(models, ami=AMIS[0], peak=None, **nodes):
    """(of the engines, of the node pools) for the models of a release."""
    ours = {
        "aws": {"region": "eu-central-1"},
        "tls": {"mode": "none"},
        "network": {"s3Cidrs": ["10.0.0.0/24"]},
        "models": models,
    }
    pools = {
        "global": ours,
        "nodeClass": NODES["nodeClass"],
        "ec2": NODES["ec2"] | {"amiAlias": f"bottlerocket@{ami}"},
        "longestDrainSeconds": sum(DRAIN.values()),
        # Tests start more replicas than the catalogue asks for.
        "pools": {
            entry["accelerator"]: {entry.get("traffic", "interactive"): {"limit": 96}} for entry in models.values()
        },
        # As in production, but for how long nothing must have changed on a node.
        "traffic": {"interactive": {"consolidateAfter": "3s"}, "batch": {"consolidateAfter": "3s"}},
        "peak": {"traffic": ["interactive", "batch"], "schedule": hour(peak), "duration": "2h"},
    }
    return {"global": ours, "drain": DRAIN}, pools | nodes


def hour(now):
    """A schedule whose two hours have just begun, or which are half a day away."""
    start = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=0 if now else 12)
    return f"{start.minute} {start.hour} * * *"


class Fleet:
    """Engines and the node pools for them, each a release, in a namespace of their own."""

    def __init__(self, cluster, name, models):
        self.cluster, self.name, self.models = cluster, name, models
        cluster.make_namespaces([name])
        self._nodes, self._engines = Release(cluster, f"{name}-nodes", name), Release(cluster, name, name)

    def roll(self, **settings):
        """`helm upgrade` of the pools, and of the engines where there are none yet."""
        engines, nodes = values(self.models, **settings)
        self._nodes.upgrade("karpenter-nodepools", nodes | {"namePrefix": f"{self.name}-"})
        if not self._engines.there:
            self._engines.upgrade("vllm", engines, wait=False)

    def remove(self):
        self._engines.remove()
        self._nodes.remove()

    def claims(self):
        """By name, also those that are leaving."""
        found = self.cluster.client.list("karpenter.sh/v1", "NodeClaim")
        return {
            c["metadata"]["name"]: c for c in found if label(c, "karpenter.sh/nodepool").startswith(f"{self.name}-")
        }

    def leaving(self):
        """Names of the nodes that Karpenter empties, by pool; one whose instance ends counts no more, as its budgets."""
        nodes = self.cluster.client.list("v1", "Node", labelSelector="karpenter.sh/nodepool")
        counting = {
            claim.get("status", {}).get("nodeName")
            for claim in self.claims().values()
            if condition(claim, "InstanceTerminating") != "True"
        }
        found = {}
        for node in nodes:
            name, pool = node["metadata"]["name"], node["metadata"]["labels"]["karpenter.sh/nodepool"]
            taints = {taint["key"] for taint in node["spec"].get("taints", ())}
            if name in counting and "karpenter.sh/disrupted" in taints:
                found.setdefault(pool, set()).add(name)
        return found

    def nodes(self, pool):
        """Names of a pool's nodes that are not gone yet."""
        found = self.cluster.client.list("v1", "Node", labelSelector=f"karpenter.sh/nodepool={pool}")
        return {node["metadata"]["name"] for node in found}

    def pods(self, name):
        return pods(self.cluster, name, self.name)

    def wait_ready(self, **replicas):
        for name, count in replicas.items():
            self.cluster.wait(f"{name} runs", lambda n=name, c=count: all_ready(self.cluster, n, c, self.name), 240)


@pytest.fixture(scope="module")
def account():
    with Account("eu-central-1") as account:
        network = account.make_network(NODES["nodeClass"]["subnetTags"], NODES["nodeClass"]["securityGroupTags"])
        # Pods keep to their zones where they can, so what is to share a node is in one.
        one = [{"Key": key, "Value": value} for key, value in ONE_ZONE.items()]
        account.client("ec2").create_tags(Resources=network["subnets"][:1], Tags=one)
        account.make_role(NODES["nodeClass"]["role"])
        account.offer("p5.48xlarge", "p4de.24xlarge", "trn2.48xlarge")
        for ami in AMIS:
            account.publish_bottlerocket(ami, KUBERNETES_VERSION.rpartition(".")[0])
        yield account


@pytest.fixture(scope="module")
def karpenter_runs(cluster, account):
    if cluster.embedded is None:
        pytest.skip("Karpenter runs beside an embedded control plane; --kubeconfig names another cluster")
    with running(cluster, account, "inference-prod", METRICS_PORT=str(METRICS_PORT)):
        yield


@pytest.fixture(scope="module")
def fleets(cluster, karpenter_runs):
    """All of them at once, at peak, so that their nodes come at the same time."""
    found = {name: Fleet(cluster, name, models) for name, models in (("day", INTERACTIVE), ("night", BATCH))}
    try:
        found["day"].roll(peak=True)
        found["night"].roll(peak=True, nodeClass=NODES["nodeClass"] | {"subnetTags": ONE_ZONE})
        found["day"].wait_ready(whole=3, idle=2, neuron=2, only=1)
        found["night"].wait_ready(sheets=2, ledger=1)
        yield found
    finally:
        for fleet in found.values():
            fleet.remove()


def measured(name, reason):
    """The sum of what Karpenter's own metric of voluntary disruptions says of a reason."""
    with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    wanted = [line for line in lines if line.startswith(f"karpenter_voluntary_disruption_{name}{{")]
    return sum(float(line.rpartition(" ")[2]) for line in wanted if f'reason="{reason}"' in line)


@pytest.mark.parametrize(("name", "many"), [("idle", 9), ("neuron", 20)])
def test_a_node_that_an_idle_engine_holds_stays_and_an_empty_one_goes(cluster, fleets, name, many):
    """Also at peak, as an empty node interrupts nobody. What holds the other uses an eighth of it and no CPU."""
    day = fleets["day"]
    scale(cluster, name, many, "day")
    day.wait_ready(**{name: many})
    assert len(day.nodes(POOL[name])) > 1
    scale(cluster, name, 1, "day")
    (kept,) = cluster.wait("one is left", lambda: all_ready(cluster, name, 1, "day"))
    node = kept["spec"]["nodeName"]
    cluster.wait("the empty node is gone", lambda: day.nodes(POOL[name]) == {node}, 240)
    words = f'NodePool "{POOL[name]}" has consolidation policy WhenEmpty, but node is not empty'
    cluster.wait("Karpenter says why", lambda: said(cluster, "Node", node, words))
    assert [pod["metadata"]["uid"] for pod in day.pods(name)] == [kept["metadata"]["uid"]]


def images(account, fleet, pools):
    """Names of the AMIs that the instances of these pools were launched from."""
    claims = [c for c in fleet.claims().values() if label(c, "karpenter.sh/nodepool") in pools]
    instances = karpenter.instances_of(account)
    found = {instances[claim["status"]["providerID"]]["ImageId"] for claim in claims}
    return {image["Name"] for image in account.client("ec2").describe_images(ImageIds=sorted(found))["Images"]}


def test_what_has_drifted_stays_at_peak_and_leaves_one_by_one_after_it(cluster, account, fleets):
    """An AMI is rolled by one value, on GPUs and Neuron alike. The model with one replica is the next test's."""
    day = fleets["day"]
    replicas = {name: len(day.pods(name)) for name in POOL}
    held = {pod["spec"]["nodeName"] for name in POOL for pod in day.pods(name)}
    before = {n: c for n, c in day.claims().items() if c.get("status", {}).get("nodeName") in held}
    day.roll(ami=AMIS[1], peak=True)
    drifted = lambda: all(condition(day.claims()[name], "Drifted") == "True" for name in before)
    cluster.wait("all drift", drifted, 240)
    words = "No allowed disruptions for disruption reason Drifted due to blocking budget"
    for pool in POOL.values():
        cluster.wait(f"the budget of {pool} holds it", lambda p=pool: said(cluster, "NodePool", p, words))
    assert before.keys() <= day.claims().keys() and not held & set().union(*day.leaving().values())

    day.roll(ami=AMIS[1], peak=False)
    moved = {pool for name, pool in POOL.items() if name != "only"}
    most = dict.fromkeys(POOL.values(), 0)

    def replaced():
        """Whether all nodes but the one that waits are new; notes how many leave at once, and what serves meanwhile."""
        most.update({pool: max(most[pool], len(names & held)) for pool, names in day.leaving().items()})
        serving = sum(map(ready, day.pods("whole")))
        assert serving >= 2, f"{serving} of 3 replicas are ready, while the disruption budget lets one be missing"
        return not any(label(before[n], "karpenter.sh/nodepool") in moved for n in day.claims().keys() & before.keys())

    cluster.wait("all nodes are new", replaced, 240)
    assert {pool: most[pool] for pool in moved} == dict.fromkeys(moved, 1)
    day.wait_ready(**replicas)
    assert {name.rpartition("-v")[2] for name in images(account, day, moved)} == {AMIS[1]}


def test_a_single_replica_is_moved_by_its_owner(cluster, fleets):
    """Its node has drifted and takes nothing new, but ends only with the replica: `kubectl rollout restart`."""
    day = fleets["day"]
    day.roll(ami=AMIS[1], peak=False)
    (pod,) = day.pods("only")
    node = pod["spec"]["nodeName"]
    cluster.wait("Karpenter waits for it", lambda: said(cluster, "Node", node, "1 pods are waiting to be evicted"), 240)
    assert day.nodes(POOL["only"]) == {node} and ready(day.pods("only")[0])

    restarted = {"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "now"}}}}}
    cluster.client.patch("apps/v1", "Deployment", "only", restarted, "day")
    cluster.wait("the old node is gone", lambda: node not in day.nodes(POOL["only"]), 240)
    (moved,) = cluster.wait("it runs", lambda: all_ready(cluster, "only", 1, "day"))
    assert moved["metadata"]["uid"] != pod["metadata"]["uid"]
    assert moved["spec"]["nodeName"] in day.nodes(POOL["only"])


def set_ready(cluster, pod, value):
    """As the kubelet says it of an engine that loads its weights."""
    conditions = [{"type": kind, "status": value} for kind in ("Ready", "ContainersReady")]
    meta = pod["metadata"]
    cluster.client.call(
        "PATCH",
        f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/status",
        {"status": {"conditions": conditions}},
        media="application/strategic-merge-patch+json",
    )


def test_batch_is_moved_together_but_not_at_peak_nor_against_a_disruption_budget(cluster, fleets):
    night, pool = fleets["night"], "night-a100-40-batch"
    (single,) = night.pods("ledger")
    home = single["spec"]["nodeName"]
    scale(cluster, "sheets", 12, "night")
    night.wait_ready(sheets=12)
    kept = {pod["spec"]["nodeName"]: pod for pod in night.pods("sheets")}
    assert len(kept) == 2 and home in kept
    cost = {"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "1"}}}
    for pod in kept.values():
        cluster.client.patch("v1", "Pod", pod["metadata"]["name"], cost, "night")
    scale(cluster, "sheets", 2, "night")
    night.wait_ready(sheets=2)
    (other,) = kept.keys() - {home}
    assert {pod["spec"]["nodeName"] for pod in night.pods("sheets")} == {home, other}
    words = "No allowed disruptions for disruption reason Underutilized due to blocking budget"
    cluster.wait("a budget of nodes holds it", lambda: said(cluster, "NodePool", pool, words), 240)
    cluster.wait("it could go", lambda: measured("eligible_nodes", "underutilized") == 1, 240)

    set_ready(cluster, kept[home], "False")
    cluster.wait("a budget of pods holds it too", lambda: measured("eligible_nodes", "underutilized") == 0, 240)
    night.roll(peak=False, nodeClass=NODES["nodeClass"] | {"subnetTags": ONE_ZONE})
    rounds = "decision_evaluation_duration_seconds_count"
    enough = measured(rounds, "underutilized") + 4  # each round looks at many nodes, and then at single ones
    cluster.wait("Karpenter has looked again", lambda: measured(rounds, "underutilized") >= enough, 240)
    assert night.nodes(pool) == {home, other} and measured("eligible_nodes", "underutilized") == 0

    set_ready(cluster, kept[home], "True")
    cluster.wait("both are on one node", lambda: night.nodes(pool) == {home}, 240)
    night.wait_ready(sheets=2, ledger=1)
    assert [pod["metadata"]["uid"] for pod in night.pods("ledger")] == [single["metadata"]["uid"]]
    cluster.wait("Karpenter says why", lambda: said(cluster, "Node", home, "karpenter.sh/do-not-disrupt"), 240)


def test_an_old_node_goes_whatever_budgets_say_and_only_pods_budgets_and_its_grace_period_hold_it(
    cluster, karpenter_runs
):
    """At peak. Two replicas leave one after the other; a single one stays until nothing can hold its node any more."""
    old = Fleet(cluster, "old", OLD)
    try:
        old.roll(peak=True, expireAfter="120s", terminationGracePeriod="70s")
        old.wait_ready(pair=2, lone=1)
        before = old.claims()
        assert len(before) == 3
        (lone,) = old.pods("lone")
        least, leaving, outlived = [2], set(), []

        def gone():
            claims = old.claims()
            least.append(sum(map(ready, old.pods("pair"))))
            leaving.add(len([n for n in claims.keys() & before.keys() if "deletionTimestamp" in claims[n]["metadata"]]))
            waits = lone["metadata"]["uid"] in {pod["metadata"]["uid"] for pod in old.pods("lone")}
            if waits and len(claims.keys() & before.keys()) == 1:
                outlived.append(True)
            return not claims.keys() & before.keys()

        cluster.wait("all old nodes are gone", gone, 300)
        assert max(leaving) == 3, "all three left at once, at peak: no budget of nodes holds them"
        assert min(least) == 1, "the budget of pods let one of two be missing, and not both"
        assert outlived, "the single replica outlived the others' nodes"
        words = "This bypasses the PDB of the pod and the do-not-disrupt annotation"
        assert said(cluster, "Pod", lone["metadata"]["name"], words)
    finally:
        old.remove()


#: `pair` fills a node with each replica.
OLD = {
    "pair": model("l4", tensorParallelSize=8, replicas={"min": 2}),
    "lone": model("l4", replicas={"min": 1}),
}

#: The environments whose nodes Karpenter brings; EKS Auto Mode's own controller is nobody's to run.
ENVIRONMENTS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(checkout.VALUES.glob("*.yaml"))}
ENVIRONMENTS = {
    name: environment
    for name, environment in ENVIRONMENTS.items()
    if (nodes := environment.get("karpenter-nodepools", {})).get("enabled") and nodes.get("mode") != "autoMode"
}


@pytest.fixture(scope="module")
def fits(cluster, karpenter_runs):
    """For each environment, and each of its engines that needs an accelerator, the pools that Karpenter would use.

    Asked of Karpenter by a pod for each engine and pool, which may run in that pool alone: where it can, it brings a
    node, and where it cannot, it says so.
    """
    cluster.make_namespaces(["fits"])
    asked, pools = {}, []
    for name, environment in ENVIRONMENTS.items():
        nodes = chart_values(environment, "karpenter-nodepools")
        nodes |= {"namePrefix": f"{name}-", "nodeClass": NODES["nodeClass"], "peak": {}}
        nodes["ec2"] = nodes["ec2"] | {"amiAlias": f"bottlerocket@{AMIS[0]}"}
        rendered = helm.template("karpenter-nodepools", values=nodes).objects
        made = [o for o in rendered if o["kind"] in ("EC2NodeClass", "NodePool")]
        pools += made
        names = [o["metadata"]["name"] for o in made if o["kind"] == "NodePool"]
        rendered = [
            o for c in ("vllm", "kserve") for o in helm.template(c, values=chart_values(environment, c)).objects
        ]
        for engine in [*rendered, *deployments(rendered)]:
            if engine["kind"] == "Deployment" and "tolerations" in engine["spec"]["template"]["spec"]:
                for pool in names:
                    asked[name, engine["metadata"]["name"], pool] = engine["spec"]["template"]
    try:
        for o in pools:
            cluster.client.apply(o)
        for number, ((_, _, pool), template) in enumerate(asked.items()):
            spec = template["spec"] | {"nodeSelector": {"karpenter.sh/nodepool": pool}, "serviceAccountName": "default"}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{number}"}, "spec": spec}
            cluster.client.create(pod, "fits")

        def answers():
            """By a pod's number, once there is one for each."""
            found = {}
            for pod in cluster.client.list("v1", "Pod", "fits"):
                name = pod["metadata"]["name"]
                if "nodeName" in pod["spec"] or said(cluster, "Pod", name, "Failed to schedule pod"):
                    found[int(name.removeprefix("pod-"))] = "nodeName" in pod["spec"]
            return found if len(found) == len(asked) else None

        found = cluster.wait("Karpenter has an answer for every pod", answers, 240)
        yield {question: found[number] for number, question in enumerate(asked)}
    finally:
        for pod in cluster.client.list("v1", "Pod", "fits"):
            cluster.client.delete("v1", "Pod", pod["metadata"]["name"], "fits")
        for o in pools:
            cluster.client.delete(o["apiVersion"], o["kind"], o["metadata"]["name"])


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_engine_of_an_environment_fits_one_pool_and_no_other(fits, environment):
    ours = ENVIRONMENTS[environment]["global"]
    engines = {engine for name, engine, _ in fits if name == environment}
    assert engines
    for engine in engines:
        entry = whole(ours, ours["models"][engine.removesuffix("-predictor").removesuffix("-canary")])
        pools = {pool for (name, other, pool), fit in fits.items() if (name, other) == (environment, engine) and fit}
        assert pools == {f"{environment}-{entry['accelerator']}-{entry['traffic']}"}, engine


def test_moto_had_an_answer_to_every_call(account, fits):
    """The last test: what Karpenter asked for and did not get would have made it act otherwise."""
    assert account.unanswered() == []

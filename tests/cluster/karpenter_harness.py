"""Karpenter beside the cluster of the tests, and what they ask of its nodes and of the pods on them."""

import contextlib

from inference_plane.cluster import karpenter
from inference_plane.cluster.client import Refused
from inference_plane.cluster.diagnose import condition, ready

KINDS = {"NodePool": "karpenter.sh/v1", "NodeClaim": "karpenter.sh/v1", "EC2NodeClass": "karpenter.k8s.aws/v1"}

#: Profile -> the instance family and the resource that its nodes must have.
FAMILY = {
    "l4": ("g6", "nvidia.com/gpu"),
    "l40s": ("g6e", "nvidia.com/gpu"),
    "a100-40": ("p4d", "nvidia.com/gpu"),
    "a100-80": ("p4de", "nvidia.com/gpu"),
    "h100": ("p5", "nvidia.com/gpu"),
    "inferentia2": ("inf2", "aws.amazon.com/neuroncore"),
    "trainium2": ("trn2", "aws.amazon.com/neuron"),
}


class Running:
    """Karpenter as a process that can be killed and started again; `kubelets` answer for the nodes that it brings."""

    def __init__(self, cluster, account, name, settings):
        self._cluster, self._arguments = cluster, (cluster.embedded, account, name)
        self._settings, self.kubelets = settings, karpenter.Kubelets(cluster.kubeconfig, account)
        self.start()

    def start(self):
        self.process = karpenter.start(*self._arguments, **self._settings)

    def kill(self):
        self.process.kill()
        self.stop()

    def stop(self):
        self._cluster.embedded.processes.stop(self.process)


@contextlib.contextmanager
def running(cluster, account, name, **settings):
    """Karpenter, as the only one who brings nodes; whoever enters has removed its pools and pods before the end."""
    cluster.remove_nodes()
    found = Running(cluster, account, name, settings)
    cluster.logs.append(found.process.log_path)
    with found.kubelets:
        yield found
        # Only while it runs can its objects go.
        left = lambda: [o for kind, version in KINDS.items() for o in cluster.client.list(version, kind)]
        cluster.wait("all nodes are gone", lambda: not left(), 120)
        found.stop()
        assert karpenter.instances_of(account) == {} and found.kubelets.problems == []


def model(accelerator, **further):
    return {
        "source": f"s3://models/{accelerator}/v1/",
        "weightsGiB": 4,
        "accelerator": accelerator,
        "maxModelLen": 4096,
        **further,
    }


def compiled(accelerator, parallel):
    made = {"source": "s3://models/compiled/v1/", "tensorParallelSize": parallel, "maxModelLen": 4096, "maxNumSeqs": 8}
    return model(accelerator, tensorParallelSize=parallel, maxNumSeqs=8, compiled=made)


def claims(cluster):
    """The NodeClaims by the name of their node."""
    found = cluster.client.list("karpenter.sh/v1", "NodeClaim")
    return {c["status"]["nodeName"]: c for c in found if c.get("status", {}).get("nodeName")}


def pods(cluster, name, namespace="inference"):
    """The pods of a Deployment that nobody has asked to end."""
    labels = cluster.client.get("apps/v1", "Deployment", name, namespace)["spec"]["selector"]["matchLabels"]
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    found = cluster.client.list("v1", "Pod", namespace, labelSelector=selector)
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def scale(cluster, name, replicas, namespace="inference"):
    cluster.client.patch("apps/v1", "Deployment", name, {"spec": {"replicas": replicas}}, namespace)


def all_ready(cluster, name, replicas, namespace="inference"):
    found = pods(cluster, name, namespace)
    return found if len(found) == replicas and all(map(ready, found)) else None


def label(claim, name):
    return claim["metadata"]["labels"][name]


def conditions(cluster, kind, names):
    """What keeps pools or classes from being Ready, in Karpenter's words; nothing where all of them are."""
    found = {o["metadata"]["name"]: o for o in cluster.client.list(KINDS[kind], kind)}
    lines = [f"{kind} {name} is not there" for name in names if name not in found]
    for name in names & found.keys():
        stated = found[name].get("status", {}).get("conditions") or ()
        unmet = [f"{c['type']}={c['status']} {c.get('message', '')}" for c in stated if c["status"] != "True"]
        if condition(found[name], "Ready") != "True":
            lines.append(f"{kind} {name}: {'; '.join(unmet)}")
    return lines


def unplaced(cluster, name, namespace):
    """The pods of a Deployment that have no node, with what Karpenter says of them; nothing where all have one.

    And of the pools that can bring no instance at all, since it passes these by and says nothing of them to a pod.
    """
    found = [pod["metadata"]["name"] for pod in pods(cluster, name, namespace) if "nodeName" not in pod["spec"]]
    lines = [f"{pod} has no node: {said(cluster, 'Pod', pod, 'Failed to schedule pod')}" for pod in found]
    events = cluster.client.list("v1", "Event", fieldSelector="reason=NoCompatibleInstanceTypes") if lines else ()
    return lines + [f"{event['involvedObject']['name']}: {event['message']}" for event in events]


def immovable(cluster, name, namespace):
    """The pods of a Deployment that nobody may evict, with the API server's reason; nothing where one may go."""
    lines = []
    for pod in (pod["metadata"]["name"] for pod in pods(cluster, name, namespace)):
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
        try:
            cluster.client.call("POST", path, eviction, dryRun="All")
        except Refused as error:
            lines.append(f"{pod} cannot be moved: {error}")
    return lines


def said(cluster, kind, name, words):
    """Karpenter's words about an object, where they hold `words`."""
    selector = f"involvedObject.kind={kind},involvedObject.name={name}"
    messages = [event["message"] for event in cluster.client.list("v1", "Event", fieldSelector=selector)]
    return next((message for message in messages if words in message), "")

"""Every environment and every ci/ file on a real API server: taken whole, ready, and gone again."""

import re

import pytest
from cluster_harness import Release, kept_on_purpose, lost

from inference_plane.environments import cases

CASES = [case for case in cases() if case.chart == "inference-plane" or "/ci/" in case.name]

#: What any ServiceAccount may do in its namespace: ask the API server who it is and what it may.
EVERYBODY = {
    ("create", "authentication.k8s.io", "selfsubjectreviews", ()),
    ("create", "authorization.k8s.io", "selfsubjectaccessreviews", ()),
    ("create", "authorization.k8s.io", "selfsubjectrulesreviews", ()),
}

#: What ServiceAccounts may do beyond that, and why; whoever is not here may nothing.
ALLOWED = {
    "router-policy": {
        ("list", "", "pods", ()),  # pods that wait for an accelerator
        ("list", "discovery.k8s.io", "endpointslices", ()),  # engines that are ready
        ("create", "events.k8s.io", "events", ()),  # changes of a share, for `kubectl get events`
        ("get", "coordination.k8s.io", "leases", ("router-policy",)),  # who of two decides
        ("update", "coordination.k8s.io", "leases", ("router-policy",)),
    }
}


@pytest.fixture(scope="module", params=CASES, ids=[case.name for case in CASES])
def installed(request, cluster):
    """A release of each case, with all that the cluster had before it."""
    case, release = request.param, Release(cluster)
    models = case.values["global"].get("models", {}).values()
    cluster.make_namespaces({"inference", *(model["namespace"] for model in models if "namespace" in model)})
    cluster.make_nodes(case.values)
    before = cluster.objects()
    release.upgrade(case.chart, case.values)
    yield case, release, before
    release.remove()


def test_everything_is_ready_and_stored_as_it_was_sent(installed):
    """`helm upgrade --install --wait` has ended, so what has a readiness is ready; nothing was pruned on the way."""
    case, release, _ = installed
    sent = release.manifest()
    assert sent or case.name.startswith("kserve")
    problems = [f"{o['kind']} {o['metadata']['name']}{path}" for o in sent for path in lost(o, release.stored(o))]
    assert problems == []


def test_what_helm_test_would_make_is_taken(installed):
    _, release, _ = installed
    for o in release.manifest("hooks"):
        namespace = o["metadata"].get("namespace", release.namespace)
        taken = release.cluster.client.create(o, namespace, dryRun="All", fieldValidation="Strict")
        assert list(lost(o, taken)) == []


def test_a_service_account_may_what_is_on_the_list_and_nothing_else(installed):
    """By the API server's own answer of what each may do in its namespace."""
    _, release, _ = installed
    for o in release.manifest():
        if o["kind"] == "ServiceAccount":
            name, namespace = o["metadata"]["name"], o["metadata"].get("namespace", release.namespace)
            found = set(rights(release.cluster.client, name, namespace))
            assert found == EVERYBODY | ALLOWED.get(name, set()), name


def rights(client, name, namespace):
    """(verb, group, resource, names) that the API server's authorizer lets a ServiceAccount do in its namespace."""
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": namespace}}
    as_account = {"Impersonate-User": f"system:serviceaccount:{namespace}:{name}"}
    answer = client.create(body, headers=as_account)
    assert answer["status"]["incomplete"] is False
    for rule in answer["status"]["resourceRules"]:
        for verb in rule["verbs"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    yield verb, group, resource, tuple(rule.get("resourceNames", ()))


def test_uninstalled_it_leaves_what_is_kept_on_purpose_and_says_so(installed):
    """The last test of each case. Nodes, with the pods of other releases, outlive the release that brought them."""
    _, release, before = installed
    cluster, kept = release.cluster, [o for o in release.manifest() if kept_on_purpose(o)]
    names = {(o["kind"], o["metadata"]["name"]) for o in kept}
    assert {kind for kind, _ in names} <= {"NodePool", "EC2NodeClass", "NodeClass"}
    said = release.uninstall()
    assert set(re.findall(r"^\[(\w+)\] (\S+)", said, re.MULTILINE)) == names

    def left():
        return sorted(map(str, (o for o in cluster.objects() - before if o[2] not in {name for _, name in names})))

    # What owners are gone of goes a moment later.
    cluster.wait("nothing else is left", lambda: not left() or print(left()), seconds=60)
    for o in kept:
        release.stored(o)
        cluster.client.delete(o["apiVersion"], o["kind"], o["metadata"]["name"])


def test_a_field_that_the_api_server_prunes_is_found(cluster):
    """So that the first test of each case can fail."""
    requirements = [{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}]
    reference = {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "nodes"}
    spec = {"nodeClassRef": reference, "requirements": requirements, "expireAftr": "24h"}
    pool = {"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": "pruned"}}
    pool["spec"] = {"template": {"spec": spec}}
    stored = cluster.client.create(pool, dryRun="All", fieldValidation="Ignore")
    assert list(lost(pool, stored)) == [".spec.template.spec.expireAftr: '24h' is stored as None"]


def test_a_right_too_many_is_found(cluster):
    cluster.make_namespaces(["rights"])
    group = "rbac.authorization.k8s.io"
    rule = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}
    role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": "reader"}, "rules": [rule]}
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": "rights"}
    binding = {"apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": {"name": "reader"}}
    binding |= {"roleRef": {"apiGroup": group, "kind": "Role", "name": "reader"}, "subjects": [subject]}
    for o in (role, binding):
        cluster.client.create(o, "rights")
    found = cluster.wait("the binding acts", lambda: set(rights(cluster.client, "default", "rights")) - EVERYBODY)
    assert found == {("get", "", "secrets", ())}

"""What every ServiceAccount of the largest environments may do, asked of the API server's authorizer one by one."""

import concurrent.futures

from test_cluster_install import ALLOWED, CASES, EVERYBODY

#: Verbs that no resource lists among its own, and by which somebody gets more rights than he has.
POWERS = {
    ("rbac.authorization.k8s.io", "roles"): ("bind", "escalate"),
    ("rbac.authorization.k8s.io", "clusterroles"): ("bind", "escalate"),
    ("", "users"): ("impersonate",),
    ("", "groups"): ("impersonate",),
    ("", "serviceaccounts"): ("impersonate",),
    ("certificates.k8s.io", "signers"): ("approve", "sign"),
}


def everything(client):
    """(verb, group, resource, subresource, whether it is in namespaces) of all that can be asked for."""
    found = set()
    for version, name, namespaced, verbs in client.kinds():
        group = version.rpartition("/")[0]
        resource, _, sub = name.partition("/")
        found |= {(verb, group, resource, sub, namespaced) for verb in verbs}
    return found | {(v, group, resource, "", False) for (group, resource), verbs in POWERS.items() for v in verbs}


def test_each_may_what_is_on_the_list_and_nothing_else(cluster, release):
    case = next(case for case in CASES if case.name == "prod/inference-plane")
    cluster.make_nodes(case.values)
    release.upgrade(case.chart, case.values)
    accounts = {o["metadata"]["name"] for o in release.manifest() if o["kind"] == "ServiceAccount"}
    assert set(ALLOWED) < accounts
    asked = everything(cluster.client)
    # In its own namespace, in another one, and in all at once; what is in no namespace is asked for once.
    places = (release.namespace, "default", None)
    questions = [
        (account, verb, group, resource, sub, place)
        for account in accounts
        for verb, group, resource, sub, namespaced in sorted(asked)
        for place in (places if namespaced else (None,))
    ]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda question: may(cluster.client, release.namespace, *question), questions)
        found = {question for question, answer in zip(questions, answers, strict=True) if answer}
    print(f"{len(questions)} questions about {len(accounts)} accounts, {len(found)} answered yes")

    # A right to one named object is none to all of them, so leases are not among the answers.
    expected = {
        (account, verb, group, resource, "", release.namespace)
        for account, rights in ALLOWED.items()
        for verb, group, resource, names in rights
        if not names
    } | {(account, verb, group, resource, "", None) for account in accounts for verb, group, resource, _ in EVERYBODY}
    assert found == expected
    # And the named one.
    for verb in ("get", "update", "delete"):
        answer = may(
            cluster.client, release.namespace, "router-policy", verb, "coordination.k8s.io", "leases", "",
            release.namespace, "router-policy",
        )  # fmt: skip
        assert answer is (verb != "delete")


def may(client, home, account, verb, group, resource, sub, namespace, name=None):
    attributes = {"verb": verb, "group": group, "resource": resource, "subresource": sub}
    attributes |= {"namespace": namespace} if namespace else {}
    attributes |= {"name": name} if name else {}
    spec = {
        "user": f"system:serviceaccount:{home}:{account}",
        "groups": ["system:serviceaccounts", f"system:serviceaccounts:{home}", "system:authenticated"],
        "resourceAttributes": attributes,
    }
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
    return client.create(body)["status"]["allowed"]

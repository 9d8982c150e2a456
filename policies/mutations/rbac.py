"""Breaks of Kubernetes RBAC and of tokens."""

import copy

from inference_plane.compliance.mutations import find, mutation

ROLE, BINDING = "rbac.authorization.k8s.io/Role", "RoleBinding"


def _rule(number, **fields):
    return lambda objects: find(objects, ROLE, "router-policy")["rules"][number].update(fields)


def _more(**fields):
    return lambda objects: find(objects, ROLE, "router-policy")["rules"].append(
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]} | fields
    )


BREAKS = {
    "PLANE_LP_01": {
        "every verb": _rule(0, verbs=["*"]),
        "every resource": _rule(1, resources=["*"]),
        "every group": _rule(1, apiGroups=["*"]),
        "every subresource of pods": _rule(1, resources=["pods", "pods/*"]),
        "every path of the server": _more(apiGroups=[], resources=[], nonResourceURLs=["/*"], verbs=["get"]),
    },
    "PLANE_LP_02": {
        "commands in pods": _more(resources=["pods/exec"], verbs=["create"]),
        "commands in pods, in capitals": _more(resources=["Pods/Exec"], verbs=["create"]),
        "tokens of other accounts": _more(resources=["serviceaccounts/token"], verbs=["create"]),
        "containers added to pods": _more(resources=["pods/ephemeralcontainers"], verbs=["patch"]),
        "to be somebody else": _more(resources=["users"], verbs=["impersonate"]),
        "to bind any role": _more(apiGroups=["rbac.authorization.k8s.io"], resources=["roles"], verbs=["bind"]),
        "to write roles": _more(apiGroups=["rbac.authorization.k8s.io"], resources=["rolebindings"], verbs=["create"]),
        "to change what is admitted": _more(resources=["mutatingwebhookconfigurations"], verbs=["update"]),
    },
    "PLANE_LP_03": {
        "Secrets listed": _more(resources=["secrets"]),
        "Secrets beside pods": _rule(1, resources=["pods", "secrets"]),
        "one Secret by name": _more(resources=["secrets"], verbs=["get"], resourceNames=["router-tls"]),
    },
    "PLANE_LP_04": {
        "pods watched": _rule(1, verbs=["list", "watch"]),
        "pods deleted": _rule(1, verbs=["list", "delete"]),
        "deployments read": _more(apiGroups=["apps"], resources=["deployments"]),
        "ConfigMaps read": _more(resources=["configmaps"], verbs=["get"]),
        "health of the server": _more(apiGroups=[], resources=[], nonResourceURLs=["/healthz"], verbs=["get"]),
        "pods of the metrics group": _rule(1, apiGroups=["", "metrics.k8s.io"]),
    },
    "PLANE_LP_05": {
        "every Lease of the namespace": lambda objects: find(objects, ROLE, "router-policy")["rules"][3].pop(
            "resourceNames"
        ),
        "no Lease by name": _rule(3, resourceNames=[]),
        "Leases by another verb": _more(resources=["leases"], verbs=["Patch"]),
    },
}


def _cluster_wide(kind, of):
    def change(objects):
        wide = copy.deepcopy(find(objects, of)) | {"kind": kind}
        del wide["metadata"]["namespace"]
        objects.append(wide)

    return change


BREAKS["PLANE_LP_06"] = {
    "a ClusterRole beside the Role": _cluster_wide("ClusterRole", ROLE),
    "a ClusterRoleBinding beside the RoleBinding": _cluster_wide("ClusterRoleBinding", BINDING),
}


def _subjects(*subjects):
    return lambda objects: find(objects, BINDING).update(subjects=list(subjects))


_POLICY = {"kind": "ServiceAccount", "name": "router-policy", "namespace": "inference"}
BREAKS["PLANE_LP_07"] = {
    "every account of the cluster": _subjects({"kind": "Group", "name": "system:serviceaccounts"}),
    "everybody beside the account": _subjects(_POLICY, {"kind": "Group", "name": "system:authenticated"}),
    "a person": _subjects({"kind": "User", "name": "jane"}),
    "the account of the same name elsewhere": _subjects(_POLICY | {"namespace": "default"}),
    "the default account": _subjects(_POLICY | {"name": "default"}),
    "the router too": _subjects(_POLICY, _POLICY | {"name": "router"}),
    "nobody": _subjects(),
}
BREAKS["PLANE_LP_08"] = {
    name: (lambda objects, ref=ref: find(objects, BINDING)["roleRef"].update(ref))
    for name, ref in {
        "edit": {"kind": "ClusterRole", "name": "edit"},
        "cluster-admin": {"kind": "ClusterRole", "name": "cluster-admin"},
        "the ClusterRole of the same name": {"kind": "ClusterRole", "name": "router-policy"},
        "a Role that is not there": {"kind": "Role", "name": "router"},
    }.items()
} | {
    "the role is ACK's": lambda objects: find(objects, ROLE, "router-policy").update(
        apiVersion="iam.services.k8s.aws/v1alpha1"
    )
}


def _account(name, **fields):
    return lambda objects: find(objects, "ServiceAccount", name).update(fields)


def _pod(name, **fields):
    return lambda objects: find(objects, "Deployment", name)["spec"]["template"]["spec"].update(fields)


def _no_binding(objects):
    objects.remove(find(objects, BINDING))


def _second_role(objects):
    second = copy.deepcopy(find(objects, ROLE, "router-policy"))
    second["metadata"]["name"] = "router-policy-2"
    objects.append(second)


def _projected(**token):
    source = {"projected": {"sources": [{"serviceAccountToken": {"path": "token"} | token}]}}
    return lambda objects: find(objects, "Deployment", "router")["spec"]["template"]["spec"]["volumes"].append(
        {"name": "token"} | source
    )


def _test(**fields):
    return lambda objects: find(objects, "Pod", "router-test")["spec"].update(fields)


def _annotation(name, key, value):
    return lambda objects: (
        find(objects, "ServiceAccount", name)["metadata"]
        .setdefault("annotations", {})
        .update({f"eks.amazonaws.com/{key}": value})
    )


def _secret(**fields):
    return lambda objects: objects.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}} | fields)


BREAKS |= {
    "PLANE_LP_09": {
        "a role that nobody has": _no_binding,
        "a second role beside the first": _second_role,
        "an account as which no pod runs": _pod("router-policy", serviceAccountName="policy"),
    },
    "PLANE_LP_10": {
        "a token for each pod of the account": _account("router", automountServiceAccountToken=True),
        "the word false for false": _account("router", automountServiceAccountToken="false"),
        "nothing said of tokens": lambda objects: find(objects, "ServiceAccount", "clinical-summary").pop(
            "automountServiceAccountToken"
        ),
    },
    "PLANE_LP_11": {
        "a token for an engine": _pod("clinical-summary", automountServiceAccountToken=True),
        "a token for the router": _pod("router", automountServiceAccountToken=None),
        "a token that nothing is bound to": _no_binding,
    },
    "PLANE_LP_12": {
        "a projected token of the API server": _projected(),
        "a projected token for somebody else": _projected(audience="vault"),
        "a token for a week": _projected(audience="sts.amazonaws.com", expirationSeconds=604800),
    },
    "PLANE_LP_13": {
        "an engine as the router": _pod("clinical-summary", serviceAccountName="router"),
        "a canary as its model": _pod("clinical-summary-canary", serviceAccountName="clinical-summary"),
        "the default account": _pod("router-valkey", serviceAccountName="default"),
        "no account": _pod("router", serviceAccountName=None),
    },
    "PLANE_LP_14": {
        "a test as the router": _test(serviceAccountName="router"),
        "a test with a token": _test(automountServiceAccountToken=True),
    },
    "PLANE_LP_15": {
        "somebody else's role": _annotation("router", "role-arn", "arn:aws:iam::111122223333:role/admin"),
        "a role that begins so": _annotation("router", "role-arn", "arn:aws:iam::111122223333:role/inference-router-a"),
        "another audience": _annotation("router", "audience", "everybody"),
    },
    "PLANE_LP_16": {
        "a rendered Secret": _secret(data={"a": "Yg=="}),
        "a Secret in clear": _secret(stringData={"a": "b"}),
        "a long-lived token": _secret(type="kubernetes.io/service-account-token"),
    },
}
ENFORCE = "pod-security.kubernetes.io/enforce"


def _managed(objects):
    return find(objects, "Application", "inference-prod-cluster")["spec"]["syncPolicy"]["managedNamespaceMetadata"]


for name, change in {
    "the baseline": lambda objects: _managed(objects)["labels"].update({ENFORCE: "baseline"}),
    "a warning alone": lambda objects: _managed(objects)["labels"].pop(ENFORCE),
    "the standard of another field": lambda objects: _managed(objects).update(
        annotations=_managed(objects).pop("labels")
    ),
    "a Namespace without labels": lambda objects: objects.append(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "inference"}}
    ),
}.items():
    mutation("PLANE_LP_17", name, source="argocd/")(change)
for rule, changes in BREAKS.items():
    for name, change in changes.items():
        mutation(rule, name)(change)

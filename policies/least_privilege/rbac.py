"""What ServiceAccounts may ask of the Kubernetes API."""

from collections.abc import Iterator, Mapping

from inference_plane.compliance.rules import rule
from inference_plane.kube import Index, meta, name_of

ROLES = {"rbac.authorization.k8s.io/Role", "rbac.authorization.k8s.io/ClusterRole"}
BINDINGS = {"rbac.authorization.k8s.io/RoleBinding", "rbac.authorization.k8s.io/ClusterRoleBinding"}
_GUIDE = "https://kubernetes.io/docs/concepts/security/rbac-good-practices/"

#: What the plane's programs call, src/inference_plane/policy/kubernetes.py: (group, resource) -> verbs.
CALLED = {
    ("discovery.k8s.io", "endpointslices"): {"list"},
    ("", "pods"): {"list"},
    ("events.k8s.io", "events"): {"create"},
    ("coordination.k8s.io", "leases"): {"get", "update"},
}
#: Rights on one named object: without the name they are rights on every such object of the namespace.
NAMED = {"get", "update", "patch", "delete"}
#: https://kubernetes.io/docs/concepts/security/rbac-good-practices/#privilege-escalation-risks
ESCALATING_VERBS = {"escalate", "bind", "impersonate"}
ESCALATING_RESOURCES = {
    "pods/exec", "pods/attach", "pods/portforward", "pods/ephemeralcontainers", "serviceaccounts/token", "nodes/proxy",
    "certificatesigningrequests", "certificatesigningrequests/approval", "persistentvolumes", "tokenreviews",
    "mutatingwebhookconfigurations", "validatingwebhookconfigurations", "roles", "clusterroles", "rolebindings",
    "clusterrolebindings",
}  # fmt: skip


def _entries(obj: Mapping, field: str) -> Iterator[tuple[int, str]]:
    for number, entry in enumerate(obj.get("rules") or ()):
        for value in entry.get(field) or ():
            yield number, str(value).lower()


@rule(
    "PLANE_LP_01",
    "No wildcard in a role",
    severity="HIGH",
    kinds=ROLES,
    why="A wildcard grants what nobody listed, and what a later version of the cluster adds.",
    remedy="Name each API group, resource and verb that the workload calls.",
    source=_GUIDE + "#least-privilege",
    example='verbs: ["*"]',
)
def no_wildcard(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for field in ("apiGroups", "resources", "verbs", "resourceNames", "nonResourceURLs"):
        for number, value in _entries(obj, field):
            if "*" in value:
                yield f"rules[{number}].{field}", f"has {value!r}"


@rule(
    "PLANE_LP_02",
    "No right that leads to more rights",
    severity="CRITICAL",
    kinds=ROLES,
    why="Whoever may run a command in a pod, make a token, or write a role, has what that pod, token or role may do.",
    remedy="Take the verb or resource out. The plane's programs need none of them.",
    source=_GUIDE + "#privilege-escalation-risks",
    example="resources: [pods/exec]",
)
def no_escalation(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for number, verb in _entries(obj, "verbs"):
        if verb in ESCALATING_VERBS:
            yield f"rules[{number}].verbs", f"has {verb!r}"
    for number, resource in _entries(obj, "resources"):
        if resource in ESCALATING_RESOURCES:
            yield f"rules[{number}].resources", f"has {resource!r}"


@rule(
    "PLANE_LP_03",
    "No role reads Secrets",
    severity="CRITICAL",
    kinds=ROLES,
    why="To list or watch Secrets is to read them all: keys of certificates, tokens of registries.",
    remedy="Mount the one Secret that a pod needs; the kubelet brings it without a right of the pod.",
    source=_GUIDE + "#listing-secrets",
    example="resources: [secrets]",
)
def no_secrets(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for number, resource in _entries(obj, "resources"):
        if resource.split("/")[0] == "secrets":
            yield f"rules[{number}].resources", f"has {resource!r}"


@rule(
    "PLANE_LP_04",
    "No right that no program of the plane uses",
    severity="HIGH",
    kinds=ROLES,
    why="An unused right is of use only to whoever takes the pod over.",
    remedy="Remove it. A program that calls more has its calls added to CALLED in policies/least_privilege/rbac.py.",
    source=_GUIDE + "#least-privilege",
    example="apiGroups: [apps], resources: [deployments], verbs: [list]",
)
def no_unused_right(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for number, entry in enumerate(obj.get("rules") or ()):
        if entry.get("nonResourceURLs"):
            yield f"rules[{number}].nonResourceURLs", "no program of the plane calls such paths"
        for group in entry.get("apiGroups") or ():
            for resource in entry.get("resources") or ():
                for verb in entry.get("verbs") or ():
                    if verb not in CALLED.get((group, resource), ()):
                        yield f"rules[{number}]", f"nothing calls {verb} on {resource} of the group {group or 'core'!r}"


@rule(
    "PLANE_LP_05",
    "Rights on single objects name them",
    severity="MEDIUM",
    kinds=ROLES,
    why="Without resourceNames the right to change one Lease is the right to change every Lease of the namespace.",
    remedy="Add resourceNames with the one name.",
    source="https://kubernetes.io/docs/reference/access-authn-authz/rbac/#referring-to-resources",
    example="resources: [leases], verbs: [update], no resourceNames",
)
def named(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for number, entry in enumerate(obj.get("rules") or ()):
        verbs = sorted(NAMED & {str(verb).lower() for verb in entry.get("verbs") or ()})
        if verbs and not entry.get("resourceNames"):
            yield f"rules[{number}].resourceNames", f"is empty, with {', '.join(verbs)}"


@rule(
    "PLANE_LP_06",
    "No right beyond a namespace",
    severity="HIGH",
    kinds={"rbac.authorization.k8s.io/ClusterRole", "rbac.authorization.k8s.io/ClusterRoleBinding"},
    why="The plane works in the namespaces of its release and its models; a cluster-wide right reaches everybody's.",
    remedy="Use a Role and a RoleBinding in each namespace.",
    source=_GUIDE + "#least-privilege",
    example="kind: ClusterRoleBinding",
)
def nothing_cluster_wide(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    yield "kind", f"is {obj['kind']}"


@rule(
    "PLANE_LP_07",
    "Roles are bound to single ServiceAccounts of the plane",
    severity="CRITICAL",
    kinds=BINDINGS,
    why="A user, a group such as system:serviceaccounts, or an account of another workload gets the rights with it.",
    remedy="Name one ServiceAccount that the render has.",
    source=_GUIDE + "#least-privilege",
    example="subjects: [{kind: Group, name: system:authenticated}]",
)
def bound_to_accounts(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    subjects = obj.get("subjects") or ()
    if len(subjects) != 1:
        yield "subjects", f"has {len(subjects)} entries, not one"
    for number, subject in enumerate(subjects):
        namespace = subject.get("namespace") or index.namespace_of(obj)
        if subject.get("kind") != "ServiceAccount":
            yield f"subjects[{number}]", f"is the {subject.get('kind')} {subject.get('name')!r}, not a ServiceAccount"
        elif index.get("ServiceAccount", namespace, subject.get("name", "")) is None:
            yield f"subjects[{number}]", f"ServiceAccount {namespace}/{subject.get('name')} is not in the render"


@rule(
    "PLANE_LP_08",
    "Bindings are to roles that the render shows",
    severity="HIGH",
    kinds=BINDINGS,
    why="A role from elsewhere (cluster-admin, edit, one that exists already) grants what these manifests do not show.",
    remedy="Bind a Role that is rendered beside the binding.",
    source=_GUIDE + "#least-privilege",
    example="roleRef: {kind: ClusterRole, name: edit}",
)
def bound_to_rendered(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    ref = obj.get("roleRef") or {}
    group = str(ref.get("apiGroup") or "rbac.authorization.k8s.io")
    roles = [o for o in index.kind("Role") if str(o.get("apiVersion", "")).startswith("rbac.authorization.k8s.io/")]
    here = {(index.namespace_of(o), meta(o).get("name")) for o in roles}
    if ref.get("kind") != "Role" or (index.namespace_of(obj), ref.get("name")) not in here:
        yield "roleRef", f"is {ref.get('kind')} {ref.get('name')!r} of {group}, which is no Role of this render"


@rule(
    "PLANE_LP_09",
    "Every role is bound, and every bound account is some pod's",
    severity="LOW",
    kinds=ROLES,
    why="A role that nobody has, or an account that no pod runs as, waits for whoever makes the missing half.",
    remedy="Remove the role, or render the binding and the pod that need it.",
    source=_GUIDE + "#periodic-review",
    example="a Role without a RoleBinding",
)
def used(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    namespace, name = index.namespace_of(obj), meta(obj).get("name")
    bindings = [
        b
        for b in index.kind("RoleBinding", "ClusterRoleBinding")
        if (b.get("roleRef") or {}).get("name") == name
        and (b.get("roleRef") or {}).get("kind") == obj["kind"]
        and (not namespace or index.namespace_of(b) == namespace)
    ]
    if not bindings:
        yield "", "no binding gives it to anybody"
    running = {(w.namespace, w.pod.get("serviceAccountName")) for w in index.workloads}
    for binding in bindings:
        for subject in binding.get("subjects") or ():
            account = (subject.get("namespace") or index.namespace_of(binding), subject.get("name"))
            if account not in running:
                yield "", f"{name_of(binding)} gives it to {'/'.join(map(str, account))}, as which no pod runs"

"""ServiceAccounts and the tokens that pods get of them."""

from collections.abc import Iterator, Mapping

from inference_plane.compliance.pods import KINDS, workload
from inference_plane.compliance.rules import rule
from inference_plane.kube import Index, meta

_TOKENS = "https://kubernetes.io/docs/tasks/configure-pod-container/configure-service-account/"
#: Whom a projected token may be for, and the longest time in seconds that it may hold: a day, EKS's own.
AUDIENCES = {"pods.eks.amazonaws.com", "sts.amazonaws.com"}
LONGEST = 86400
_ROLE_ARN = "eks.amazonaws.com/role-arn"


@rule(
    "PLANE_LP_10",
    "ServiceAccounts give no token by themselves",
    severity="MEDIUM",
    kinds={"core/ServiceAccount"},
    why="A token of the API server in every pod is a credential that most pods never use.",
    remedy="automountServiceAccountToken: false on the ServiceAccount; a pod that calls the API server says so itself.",
    source=_TOKENS + "#opt-out-of-api-credential-automounting",
    example="automountServiceAccountToken: true",
)
def account_without_token(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    if obj.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken", f"is {obj.get('automountServiceAccountToken')!r}, not false"


@rule(
    "PLANE_LP_11",
    "Only pods with rights get a token of the API server",
    severity="HIGH",
    kinds=KINDS,
    why="A pod whose account is bound to nothing has no use for a token; one who takes it over has.",
    remedy="automountServiceAccountToken: false in the pod, or bind its account to what it calls.",
    source=_TOKENS + "#opt-out-of-api-credential-automounting",
    example="a pod of an engine without automountServiceAccountToken: false",
)
def pod_without_token(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    pod = workload(obj, index)
    account = (pod.namespace, pod.pod.get("serviceAccountName") or "default")
    if pod.pod.get("automountServiceAccountToken") is not False and account not in index.bound_accounts:
        yield f"{pod.path}.automountServiceAccountToken", f"is not false, and nothing is bound to {account[1]!r}"


@rule(
    "PLANE_LP_12",
    "Projected tokens are for AWS alone, and short-lived",
    severity="HIGH",
    kinds=KINDS,
    why="A token without an audience of its own is one of the API server; a long one outlives its pod where it leaks.",
    remedy=f"An audience of {' or '.join(sorted(AUDIENCES))} and expirationSeconds of at most {LONGEST}.",
    source="https://kubernetes.io/docs/concepts/storage/projected-volumes/#serviceaccounttoken",
    example="serviceAccountToken: {path: token}",
)
def projected_tokens(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    pod = workload(obj, index)
    for number, volume in enumerate(pod.pod.get("volumes") or ()):
        for at, source in enumerate((volume.get("projected") or {}).get("sources") or ()):
            if (token := source.get("serviceAccountToken")) is None:
                continue
            path = f"{pod.path}.volumes[{number}].projected.sources[{at}].serviceAccountToken"
            if token.get("audience") not in AUDIENCES:
                yield path, f"its audience is {token.get('audience')!r}"
            if int(token.get("expirationSeconds") or 3600) > LONGEST:
                yield path, f"holds {token['expirationSeconds']} s"


@rule(
    "PLANE_LP_13",
    "Every pod that stays runs as an account of its own",
    severity="HIGH",
    kinds=KINDS - {"core/Pod"},
    why="AWS roles and rights are given to accounts: two workloads of one account have each other's.",
    remedy="serviceAccountName of one account for each workload.",
    source="https://docs.aws.amazon.com/eks/latest/best-practices/identity-and-access-management.html",
    example="serviceAccountName: default",
)
def own_account(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    pod = workload(obj, index)
    account = pod.pod.get("serviceAccountName")
    if account in (None, "", "default"):
        yield f"{pod.path}.serviceAccountName", f"is {account or 'not set'}: everybody's account"
        return
    # A Deployment of nodes' headroom, a fleet and its canary: each must have its own.
    others = {
        w.name for w in index.workloads if (w.namespace, w.pod.get("serviceAccountName")) == (pod.namespace, account)
    }
    if others - {pod.name}:
        yield (
            f"{pod.path}.serviceAccountName",
            f"{account} is the account of {', '.join(sorted(others - {pod.name}))} too",
        )


@rule(
    "PLANE_LP_14",
    "A pod on its own has neither account nor role",
    severity="MEDIUM",
    kinds={"core/Pod"},
    why="Single pods are the tests of `helm test`: they need no right at all, and the account `default` may have some.",
    remedy="No serviceAccountName, or one of its own, and no projected token.",
    source=_TOKENS,
    example="a test pod that runs as the router",
)
def test_pod(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    pod = workload(obj, index)
    account = pod.pod.get("serviceAccountName") or "default"
    sharing = {
        w.name for w in index.workloads if (w.namespace, w.pod.get("serviceAccountName")) == (pod.namespace, account)
    }
    if account != "default" and sharing - {pod.name}:
        yield (
            f"{pod.path}.serviceAccountName",
            f"{account} is the account of {', '.join(sorted(sharing - {pod.name}))} too",
        )
    if pod.pod.get("automountServiceAccountToken") is not False:
        yield f"{pod.path}.automountServiceAccountToken", "is not false"


@rule(
    "PLANE_LP_15",
    "An account's role is its own",
    severity="HIGH",
    kinds={"core/ServiceAccount"},
    why="A role of somebody else's name is somebody else's rights; with IRSA the annotation says which a pod has.",
    remedy="global.identity.mode irsa renders arn:<partition>:iam::<account>:role/<prefix><namespace>-<account>.",
    source="https://docs.aws.amazon.com/eks/latest/userguide/associate-service-account-role.html",
    example=f"{_ROLE_ARN}: arn:aws:iam::111122223333:role/admin",
)
def own_role(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    annotations = meta(obj).get("annotations") or {}
    arn = annotations.get(_ROLE_ARN)
    suffix = f"{index.namespace_of(obj)}-{meta(obj).get('name')}"
    if arn is not None and not (str(arn).startswith("arn:aws") and str(arn).endswith(suffix)):
        yield f"metadata.annotations['{_ROLE_ARN}']", f"is {arn!r}, whose name does not end in {suffix}"
    for key in annotations:
        if key.startswith("eks.amazonaws.com/") and key not in (_ROLE_ARN, "eks.amazonaws.com/sts-regional-endpoints"):
            yield f"metadata.annotations['{key}']", "changes how EKS gives credentials, and no chart renders it"


@rule(
    "PLANE_LP_16",
    "No Secret in the manifests",
    severity="CRITICAL",
    kinds={"core/Secret"},
    why="A Secret that is rendered stands in values, in Git and in Helm's history; base64 hides nothing.",
    remedy="Let cert-manager, External Secrets or a person make the Secret, and name it in the values.",
    source="https://kubernetes.io/docs/concepts/security/secrets-good-practices/",
    example="kind: Secret with data",
)
def no_secret(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    yield "", f"a Secret of type {obj.get('type') or 'Opaque'} stands among the manifests"


_ENFORCE = "pod-security.kubernetes.io/enforce"


@rule(
    "PLANE_LP_17",
    "Namespaces enforce the restricted Pod Security Standard",
    severity="HIGH",
    kinds={"core/Namespace", "argoproj.io/Application"},
    why="The plane's own pods keep the standard; the label keeps everybody else's pods of the namespace to it.",
    remedy=f"The label {_ENFORCE}: restricted, in the Namespace or in managedNamespaceMetadata of the Application.",
    source="https://kubernetes.io/docs/concepts/security/pod-security-admission/",
    example=f"{_ENFORCE}: baseline",
)
def restricted(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    if obj["kind"] == "Namespace":
        given, path = meta(obj).get("labels") or {}, f"metadata.labels['{_ENFORCE}']"
    else:
        sync = (obj.get("spec") or {}).get("syncPolicy") or {}
        if "CreateNamespace=true" not in (sync.get("syncOptions") or ()):
            return  # It makes no namespace.
        given = (sync.get("managedNamespaceMetadata") or {}).get("labels") or {}
        path = f"spec.syncPolicy.managedNamespaceMetadata.labels['{_ENFORCE}']"
    if given.get(_ENFORCE) != "restricted":
        yield path, f"is {given.get(_ENFORCE)!r}, not restricted"

"""Checkov's own Kubernetes rules that do not apply to the plane, each with the reason. All others run."""

#: The rule that `--require-digests`, or `global.requireDigest` of an environment, switches on again.
DIGESTS = "CKV_K8S_43"

#: id -> why it is not run.
NOT_APPLICABLE: dict[str, str] = {
    "CKV_K8S_8": "asks every container for a liveness probe: the router's is its sidecar's, and what only holds a node "
    "free, or is a test that ends by itself, answers nobody",
    "CKV_K8S_9": "asks every container for a readiness probe: see CKV_K8S_8",
    "CKV_K8S_11": "a limit of CPU throttles a router or an engine in the middle of a stream; memory, which a pod can "
    "take from its neighbours, has limits (CKV_K8S_13, PLANE_LP_29)",
    "CKV_K8S_15": "pulling at each start makes the registry a part of every restart; tags do not move (PLANE_LP_28)",
    "CKV_K8S_22": "knows no condition: engines on GPUs write kernels to their root. PLANE_LP_26 demands a read-only "
    "root of everybody else",
    "CKV_K8S_38": "fails for a pod that needs its token: the policy service, whose account is bound to a Role. "
    "PLANE_LP_11 fails for those that are bound to nothing",
    "CKV_K8S_40": "wants users above 10000, against hostPath volumes of the node's own users: there are none "
    "(PLANE_LP_25); vLLM's images have the user 2000, Valkey's 999",
    DIGESTS: "only where digests are required: scripts/check --require-digests, or global.requireDigest",
}

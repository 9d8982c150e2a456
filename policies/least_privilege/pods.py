"""What the plane's pods may do on a node."""

import re
from collections.abc import Iterator, Mapping

from inference_plane.compliance.pods import KINDS, accelerators, containers, setting, workload
from inference_plane.compliance.rules import rule
from inference_plane.kube import Index

_STANDARDS = "https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"
#: https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, "Volume Types"
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
#: The accelerators for which engines may write to their root: CUDA's runtime and kernels that are built as needed.
WRITABLE_WITH = {"nvidia.com/gpu"}
_MOVING = {"latest", "main", "master", "nightly", "edge", "dev", "stable", "canary", "rolling"}


@rule(
    "PLANE_LP_20",
    "Nobody is root",
    severity="HIGH",
    kinds=KINDS,
    why="Root in a container is root on the node when something of the kernel or of the runtime gives way.",
    remedy="runAsNonRoot: true and a runAsUser other than 0, in the pod; no container takes them back.",
    source=_STANDARDS,
    example="runAsUser: 0",
)
def non_root(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    pod = workload(obj, index).pod
    for container, path in containers(obj, index):
        if setting(pod, container, "runAsNonRoot") is not True:
            yield f"{path}.securityContext.runAsNonRoot", "is not true"
        user = setting(pod, container, "runAsUser")
        if not isinstance(user, int) or user == 0:
            yield f"{path}.securityContext.runAsUser", f"is {user!r}"


@rule(
    "PLANE_LP_21",
    "No privilege, and none to be gained",
    severity="CRITICAL",
    kinds=KINDS,
    why="A privileged container is the node; a setuid program in an image gives back what the pod gave up.",
    remedy="privileged: false and allowPrivilegeEscalation: false, written out.",
    source=_STANDARDS,
    example="allowPrivilegeEscalation not set",
)
def unprivileged(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for container, path in containers(obj, index):
        context = container.get("securityContext") or {}
        for field in ("privileged", "allowPrivilegeEscalation"):
            if context.get(field) is not False:
                yield f"{path}.securityContext.{field}", f"is {context.get(field)!r}, not false"
        if context.get("procMount", "Default") != "Default":
            yield f"{path}.securityContext.procMount", f"is {context['procMount']!r}"


@rule(
    "PLANE_LP_22",
    "No capability",
    severity="HIGH",
    kinds=KINDS,
    why="The default set lets a container bind low ports, forge packets and change owners; the plane needs none.",
    remedy="capabilities: {drop: [ALL]}, and nothing added.",
    source=_STANDARDS,
    example="capabilities: {add: [NET_ADMIN]}",
)
def no_capability(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for container, path in containers(obj, index):
        capabilities = (container.get("securityContext") or {}).get("capabilities") or {}
        if list(capabilities.get("drop") or ()) != ["ALL"]:
            yield f"{path}.securityContext.capabilities.drop", f"is {capabilities.get('drop')!r}, not [ALL]"
        if capabilities.get("add"):
            yield f"{path}.securityContext.capabilities.add", f"has {', '.join(capabilities['add'])}"


@rule(
    "PLANE_LP_23",
    "System calls are filtered",
    severity="MEDIUM",
    kinds=KINDS,
    why="Without a profile a container may make every system call that the kernel has.",
    remedy="seccompProfile: {type: RuntimeDefault}",
    source=_STANDARDS,
    example="seccompProfile: {type: Unconfined}",
)
def seccomp(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    pod = workload(obj, index).pod
    for container, path in containers(obj, index):
        profile = (setting(pod, container, "seccompProfile") or {}).get("type")
        if profile != "RuntimeDefault":
            yield f"{path}.securityContext.seccompProfile", f"is {profile!r}, not RuntimeDefault"
        for field in ("appArmorProfile", "seLinuxOptions"):
            if (given := setting(pod, container, field)) and given != {"type": "RuntimeDefault"}:
                yield f"{path}.securityContext.{field}", f"is {given!r}, which no chart renders"


@rule(
    "PLANE_LP_24",
    "Nothing of the node is shared",
    severity="CRITICAL",
    kinds=KINDS,
    why="The node's network has its instance metadata and other pods' loopback; its processes have their memory.",
    remedy="No hostNetwork, hostPID, hostIPC, hostPort, hostAliases, shareProcessNamespace, sysctls.",
    source="https://kubernetes.io/docs/concepts/security/pod-security-standards/#baseline",
    example="hostNetwork: true",
)
def nothing_of_the_node(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    made = workload(obj, index)
    for field in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace", "hostAliases"):
        if made.pod.get(field):
            yield f"{made.path}.{field}", f"is {made.pod[field]!r}"
    if (made.pod.get("securityContext") or {}).get("sysctls"):
        yield f"{made.path}.securityContext.sysctls", "are set"
    for container, path in containers(obj, index):
        for number, port in enumerate(container.get("ports") or ()):
            if port.get("hostPort") or port.get("hostIP"):
                yield f"{path}.ports[{number}]", f"takes port {port.get('hostPort')} of the node"


@rule(
    "PLANE_LP_25",
    "No folder or device of the node",
    severity="CRITICAL",
    kinds=KINDS,
    why="A hostPath reads and writes the node past every other limit, and lives on after the pod.",
    remedy=f"Volumes of these kinds alone: {', '.join(sorted(VOLUMES))}.",
    source=_STANDARDS,
    example="volumes: [{name: cache, hostPath: {path: /var/cache}}]",
)
def volumes(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    made = workload(obj, index)
    for number, volume in enumerate(made.pod.get("volumes") or ()):
        for kind in sorted(set(volume) - {"name"} - VOLUMES):
            yield f"{made.path}.volumes[{number}]", f"{volume.get('name')} is a {kind}"
    for container, path in containers(obj, index):
        if container.get("volumeDevices"):
            yield f"{path}.volumeDevices", "raw devices are mapped"


@rule(
    "PLANE_LP_26",
    "Roots are read-only, but for engines on GPUs",
    severity="MEDIUM",
    kinds=KINDS,
    why="What cannot be written cannot be replaced by whoever gets in. Engines on GPUs build kernels as they run.",
    remedy="readOnlyRootFilesystem: true, and an emptyDir where something is written. The exemption is a container "
    f"that has {' or '.join(sorted(WRITABLE_WITH))} among its limits.",
    source="https://kubernetes.io/docs/tasks/configure-pod-container/security-context/",
    example="readOnlyRootFilesystem: false in the router",
)
def read_only(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for container, path in containers(obj, index):
        given = (container.get("securityContext") or {}).get("readOnlyRootFilesystem")
        if given is not True and not WRITABLE_WITH & set(accelerators(container)):
            yield f"{path}.securityContext.readOnlyRootFilesystem", f"is {given!r}, without an accelerator"


@rule(
    "PLANE_LP_27",
    "No Secret in the environment",
    severity="HIGH",
    kinds=KINDS,
    why="Variables are inherited by every child process and end in crash reports; a file does neither.",
    remedy="Mount the Secret as a file.",
    source="https://kubernetes.io/docs/concepts/security/secrets-good-practices/#use-volumes",
    example="env: [{name: TOKEN, valueFrom: {secretKeyRef: {name: hub, key: token}}}]",
)
def no_secret_in_env(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for container, path in containers(obj, index):
        for number, variable in enumerate(container.get("env") or ()):
            if "secretKeyRef" in (variable.get("valueFrom") or {}):
                yield f"{path}.env[{number}]", f"{variable.get('name')} comes from a Secret"
        for number, source in enumerate(container.get("envFrom") or ()):
            if "secretRef" in source:
                yield f"{path}.envFrom[{number}]", "takes a whole Secret"


@rule(
    "PLANE_LP_28",
    "Images are named in full, by a tag that stays or a digest",
    severity="MEDIUM",
    kinds=KINDS,
    why="A name without a registry is whatever the node's default answers; a moving tag is another program tomorrow.",
    remedy="registry/repository:version, or @sha256:... (scripts/check --require-digests demands it).",
    source="https://kubernetes.io/docs/concepts/containers/images/#image-names",
    example="image: vllm/vllm-openai:latest",
)
def images(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    made = workload(obj, index)
    found = [(container.get("image"), f"{path}.image") for container, path in containers(obj, index)]
    for number, volume in enumerate(made.pod.get("volumes") or ()):
        if "image" in volume:
            found.append((volume["image"].get("reference"), f"{made.path}.volumes[{number}].image.reference"))
    for image, path in found:
        name, _, digest = str(image).partition("@")
        host, _, rest = name.partition("/")
        if not rest or not ("." in host or ":" in host):
            yield path, f"{image} names no registry"
        tag = name.rpartition("/")[2].partition(":")[2]
        if digest and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            yield path, f"{image} has a digest that is none"
        if not digest and (not tag or tag.lower() in _MOVING):
            yield path, f"{image} has {f'the moving tag {tag}' if tag else 'neither tag nor digest'}"


@rule(
    "PLANE_LP_29",
    "Memory is bounded",
    severity="MEDIUM",
    kinds=KINDS,
    why="A container without a limit takes its neighbours down with it.",
    remedy="resources.limits.memory of every container.",
    source="https://kubernetes.io/docs/concepts/configuration/manage-resources-containers/",
    example="resources: {}",
)
def bounded(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    for container, path in containers(obj, index):
        if not ((container.get("resources") or {}).get("limits") or {}).get("memory"):
            yield f"{path}.resources.limits.memory", "is not set"


@rule(
    "PLANE_LP_60",
    "No pod goes before the cluster's own",
    severity="MEDIUM",
    kinds=KINDS,
    why="A pod of a system priority evicts any other, and is evicted for none: it takes the node from its agents.",
    remedy="No priorityClassName, or one of the plane's own.",
    source="https://kubernetes.io/docs/tasks/administer-cluster/guaranteed-scheduling-critical-addon-pods/",
    example="priorityClassName: system-node-critical",
)
def no_system_priority(obj: Mapping, index: Index) -> Iterator[tuple[str, str]]:
    made = workload(obj, index)
    if str(made.pod.get("priorityClassName") or "").startswith("system-"):
        yield f"{made.path}.priorityClassName", f"is {made.pod['priorityClassName']}"

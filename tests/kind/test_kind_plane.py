"""The local environment served for real: pods of kind, Envoy, the policy service, budgets, and a small model's tokens.

In the order of the file: what changes the release comes last.
"""

import json

import pytest
from kind_harness import AGENT, CLIENTS, CONNECT, NAMESPACE, suites

from inference_plane.cluster.client import Refused

ENGINE, ROUTER, POLICY = 8000, 8080, 8090


def chat(model="assistant", **more):
    return {"model": model, "max_tokens": 16, "messages": [{"role": "user", "content": "Say hello."}], **more}


def address(cluster, name, namespace=NAMESPACE):
    return cluster.pods(name, namespace)[0]["status"]["podIP"]


def pod_name(cluster, name):
    return cluster.pods(name)[0]["metadata"]["name"]


def connects(cluster, pod, *targets, namespace=NAMESPACE, container=""):
    """HOST:PORT -> what came of a TCP connection from a pod."""
    return json.loads(cluster.python(pod, CONNECT, *targets, namespace=namespace, container=container))


@pytest.mark.parametrize("model", ["assistant", "records"])
def test_chat_is_answered_with_real_tokens(plane, model):
    status, headers, text = plane.ask(chat(model))
    assert status == 200, text
    reply = json.loads(text)
    assert reply["choices"][0]["message"]["content"].strip()
    assert 0 < reply["usage"]["completion_tokens"] <= 16 and reply["usage"]["prompt_tokens"] > 0
    assert headers["x-inference-backend"] == "fleet"
    assert headers["x-inference-model-version"] == "v1"


def test_streams_are_answered_token_by_token(plane):
    status, headers, text = plane.ask(chat("records", stream=True, stream_options={"include_usage": True}))
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert sum(bool(c["choices"] and c["choices"][0]["delta"].get("content")) for c in chunks) > 2
    assert chunks[-1]["usage"]["completion_tokens"] > 2
    assert headers["x-inference-backend"] == "fleet"


def test_callers_without_a_token_are_refused(plane):
    assert plane.ask(chat(), token="none")[0] == 401


def test_the_audit_line_counts_what_the_engine_counted(plane, cluster):
    status, headers, text = plane.ask(chat("records"))
    assert status == 200, text
    usage = json.loads(text)["usage"]

    def line():
        for pod in cluster.pods("router"):
            name = pod["metadata"]["name"]
            said = cluster.kubectl("logs", "--namespace", NAMESPACE, name, "--container", "envoy", "--tail=50").stdout
            for each in (json.loads(each) for each in said.splitlines() if each.startswith("{")):
                if each.get("request_id") == headers["x-request-id"] and each.get("completion_tokens") is not None:
                    return each
        return None

    found = cluster.wait("the audit line of a request", line, 60)
    assert (found["prompt_tokens"], found["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert (found["team"], found["cost_center"], found["model"]) == ("appeals", "4711", "records")


def test_a_spent_budget_is_refused_and_another_team_is_served(plane, cluster):
    def refused():
        status, headers, text = plane.ask(chat("records", max_tokens=60), team="trial")
        assert status in (200, 429), text
        return headers if status == 429 else None

    assert int(cluster.wait("a spent budget", refused, 120)["retry-after"]) > 0
    assert plane.ask(chat("records"))[0] == 200


def test_pods_are_under_restricted_pod_security(plane, cluster):
    said = cluster.kubectl(
        "run", "root", "--image=unused", "--namespace", NAMESPACE, "--privileged", "--restart=Never", check=False
    )
    assert said.returncode and "violates PodSecurity" in said.stderr


def test_strangers_reach_neither_engine_nor_policy_service(plane, cluster):
    engine, policy = f"{address(cluster, 'assistant')}:{ENGINE}", f"{address(cluster, 'router-policy')}:{POLICY}"
    for namespace in (NAMESPACE, CLIENTS):
        said = connects(cluster, "stranger", engine, policy, namespace=namespace)
        assert "connected" not in said.values(), (namespace, said)
    # They listen: who may reach them does.
    said = connects(cluster, pod_name(cluster, "router"), engine, policy, container="drain")
    assert set(said.values()) == {"connected"}, said
    said = connects(cluster, "stranger", f"{address(cluster, 'router')}:{ROUTER}", namespace=NAMESPACE)
    assert "connected" not in said.values(), said
    # Of this namespace values/local.yaml says that it may call the router.
    said = connects(cluster, "client", f"{address(cluster, 'router')}:{ROUTER}", namespace=CLIENTS)
    assert set(said.values()) == {"connected"}, said


def test_engines_reach_nothing_that_is_not_on_their_list(plane, cluster):
    """values/local.yaml gives them an empty one: not even the names of Services."""
    pods = {
        "policy service": f"{address(cluster, 'router-policy')}:{POLICY}",
        "router": f"{address(cluster, 'router')}:{ROUTER}",
        "API server": f"{cluster.client.get('v1', 'Service', 'kubernetes', 'default')['spec']['clusterIP']}:443",
        "names": f"{cluster.client.get('v1', 'Service', 'kube-dns', 'kube-system')['spec']['clusterIP']}:53",
        "agent": f"{AGENT}:80",
    }
    said = connects(cluster, pod_name(cluster, "records"), *pods.values(), container="vllm")
    if not cluster.built:
        # Kubernetes lets an enforcer leave a pod's own node out, as kindnet does; kube-router does not.
        said.pop(pods["agent"])
    assert "connected" not in said.values(), said
    # Without a policy the same addresses answer, so that it was the policy.
    free = connects(cluster, "client", pods["API server"], pods["names"], pods["agent"], namespace=CLIENTS)
    assert set(free.values()) == {"connected"}, free


def test_the_pod_identity_agent_stays_reachable_to_the_router(plane, cluster):
    """A listener on each node stands in for the agent, at the agent's link-local address."""
    router = pod_name(cluster, "router")
    script = f"import urllib.request; print(urllib.request.urlopen('http://{AGENT}/', timeout=5).read().decode())"
    assert cluster.python(router, script, container="drain").strip() == "stands in for the agent"
    if cluster.built:
        # And nothing else at that address: the kubelet listens there too. See above.
        said = connects(cluster, router, f"{AGENT}:10250", container="drain")
        assert "connected" not in said.values(), said


def test_helm_test_passes(plane):
    told = suites(plane.helm("test", "plane", "--timeout", "300s"))
    assert {name for name, _ in told} == {"router-test", "plane-vllm-stranger"}, told
    assert {phase for _, phase in told} == {"Succeeded"}, told


def running(cluster, *names):
    """The pods of workloads, also those that end just now."""
    selector = f"app.kubernetes.io/name in ({', '.join(names)})"
    return {pod["metadata"]["uid"] for pod in cluster.client.list("v1", "Pod", NAMESPACE, labelSelector=selector)}


def test_a_rolling_upgrade_of_router_and_model_loses_no_request(plane, cluster):
    before = running(cluster, "router", "records")
    with plane.traffic("records") as outcomes:
        plane.upgrade(
            router={"resources": {"requests": {"cpu": "51m"}}},
            vllm={"volumes": {"tmp": "1100Mi"}},
        )
        cluster.wait("the end of every old pod", lambda: not before & running(cluster, "router", "records"))
    _nothing_lost(outcomes)


def test_a_drained_node_waits_for_the_disruption_budget_and_loses_no_request(plane, cluster):
    node = cluster.pods("records")[0]["spec"]["nodeName"]
    with plane.traffic("records") as outcomes:
        try:
            # Not the client, which nobody would bring back.
            chosen = ("--pod-selector=app.kubernetes.io/part-of=inference-plane", "--force", "--delete-emptydir-data")
            cluster.kubectl("drain", node, *chosen, "--ignore-daemonsets", "--timeout=900s")
            assert all(p["spec"]["nodeName"] != node for p in cluster.pods("records") + cluster.pods("router"))
            cluster.kubectl("rollout", "status", "deployment/records", "--namespace", NAMESPACE, "--timeout=600s")
            # Both are on one node now: the second is not let go before the first is back.
            first, second = (p["metadata"]["name"] for p in cluster.pods("records"))
            assert _evict(cluster, first) == 201
            assert _evict(cluster, second) == 429
            cluster.kubectl("rollout", "status", "deployment/records", "--namespace", NAMESPACE, "--timeout=600s")
        finally:
            cluster.kubectl("uncordon", node)
    _nothing_lost(outcomes)


def test_a_release_is_rolled_back_and_uninstalled(plane, cluster):
    first = json.loads(plane.helm("history", "plane", "--output", "json"))[0]["revision"]
    plane.rollback(first)
    assert plane.ask(chat("records"))[0] == 200
    plane.helm("uninstall", "plane", "--wait", "--timeout", "900s")
    cluster.wait(
        "the end of what the release had",
        lambda: (
            not [
                o
                for version, kind in (("v1", "Pod"), ("v1", "ConfigMap"), ("v1", "Service"), ("v1", "ServiceAccount"))
                for o in cluster.client.list(
                    version, kind, NAMESPACE, labelSelector="app.kubernetes.io/managed-by=Helm"
                )
            ]
        ),
    )


def _evict(cluster, pod):
    """The status of one eviction."""
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": NAMESPACE}}
    try:
        cluster.client.call("POST", f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction", body)
    except Refused as error:
        return error.status
    return 201


def _nothing_lost(outcomes):
    lost = [each for each in outcomes if each.get("status") != 200 or not each.get("whole")]
    print(f"sent {len(outcomes)}, answered {len(outcomes) - len(lost)}")
    assert outcomes and not lost, f"{len(lost)} of {len(outcomes)} lost: {lost[:5]}"
    assert {each["backend"] for each in outcomes} == {"fleet"}

"""How the router's configuration is read, and what of it can be reached."""

import copy
import json

import pytest
import yaml

from inference_plane import checkout
from inference_plane.compliance import bedrock, engines, envoy, mutations, rules, sources
from inference_plane.compliance.envoy_fields import FILES, Each, unknown
from inference_plane.environments import cases
from inference_plane.kube import Index

ROUTES = {c.name for c in cases() if c.chart == "router"}


def router_of(name):
    (found,) = envoy.routers(Index(mutations.source(name).judged, "inference", ()))
    return found


@pytest.mark.parametrize("name", sorted(ROUTES))
def test_a_router_is_read_from_file_to_file_as_envoy_reads_it(name):
    router = router_of(name)
    assert router.problems == []
    assert {"bootstrap", "clusters", "routes"} <= set(router.read.values())
    assert router.routes and router.clusters
    read = set(router.read) | {path for path in router.files if path.endswith(".lua")}
    assert read == set(router.files), "every file of the pod is one that Envoy reads"


@pytest.mark.parametrize("name", sorted(ROUTES))
def test_every_model_reaches_its_fleet_and_bedrock_only_as_far_as_both_allow(name):
    """Told from the documented table of docs/residency.md, not from the code that follows the routes."""
    router = router_of(name)
    for entry in {route.entry for route in router.routes} - {None}:
        reached = {
            asked: {
                cluster.split("/")[0]
                for route in router.reachable(entry, asked)
                for cluster, _ in router.targets(route)
            }
            for asked in envoy.ASKED
        }
        model = router.names.get(entry, entry)
        fallback = router.cluster(f"bedrock/{model}")
        for asked, kinds in reached.items():
            far = fallback.facts["reach"] if fallback else ""
            leaves = fallback and (asked is None or bedrock.rank(asked) >= bedrock.rank(far))
            assert kinds == ({"fleet", "bedrock"} if leaves else {"fleet"}), (entry, asked)


def match(*headers, **others):
    return {"path": "/v1/chat/completions", "headers": list(headers), **others}


PRESENT = {"name": "x-residency", "present_match": True}


def inverted(expression):
    return {"name": "x-residency", "string_match": {"safe_regex": {"regex": expression}}, "invert_match": True}


@pytest.mark.parametrize(
    ("header", "asked", "holds"),
    [
        (PRESENT, None, False),
        (PRESENT, "", True),
        (PRESENT | {"invert_match": True}, None, True),
        (inverted("^(region|anywhere)$"), "region", False),
        (inverted("^(region|anywhere)$"), "cluster", True),
        (inverted("^(region|anywhere)$"), "region,anywhere", True),
        (inverted("^(region|anywhere)$"), None, False),
        ({"name": "x-residency", "string_match": {"exact": "cluster"}}, "cluster", True),
        ({"name": "x-residency", "string_match": {"exact": "cluster"}}, "Cluster", False),
        # Nobody says what these mean.
        (inverted("region"), "region", None),
        (inverted("^(region)$") | {"treat_missing_header_as_empty": True}, None, None),
        ({"name": "x-residency", "string_match": {"prefix": "re"}}, "region", None),
        ({"name": "x-residency", "range_match": {"start": 1}}, "region", None),
    ],
)
def test_a_condition_on_the_residency_is_known_or_said_to_be_unknown(header, asked, holds):
    assert envoy.residency_holds(header, asked) is holds


def test_a_condition_that_nobody_understands_hides_no_later_route():
    plain = envoy.conditions(match(), "cluster")
    assert envoy.conditions(match(PRESENT), "cluster") == plain, "the header is there, so it asks for nothing more"
    odd = envoy.conditions(match({"name": "x-residency", "string_match": {"contains": "clu"}}), "cluster")
    assert odd > plain and not odd <= plain


def test_json_with_a_key_twice_has_two_readings_and_is_refused():
    with pytest.raises(ValueError, match="the key cluster twice"):
        envoy.strict('{"route": {"cluster": "fleet/a", "cluster": "bedrock/a"}}')


@pytest.mark.parametrize(
    ("container", "runs"),
    [
        ({"image": "docker.io/envoyproxy/envoy:v1"}, True),
        ({"image": "registry/mirror/ENVOY-contrib:v1"}, True),
        ({"image": "registry/base:1", "command": ["sh", "-c", "exec envoy -c /etc/x"]}, True),
        ({"image": "registry/base:1", "args": ["--config-yaml", "{}"]}, True),
        ({"image": "docker.io/envoyproxy/ratelimit:3fb70258", "command": ["/bin/ratelimit"]}, False),
        ({"image": "registry/plane:1", "command": ["python", "-m", "inference_plane.drain"]}, False),
    ],
)
def test_envoy_is_known_by_what_starts_it(container, runs):
    assert envoy.runs_envoy(container) is runs


@pytest.mark.parametrize(
    ("model", "geography", "reach"),
    [
        ("openai.gpt-oss-120b-1:0", "eu", "region"),
        ("eu.mistral.pixtral-large-2502-v1:0", "eu", "geography"),
        ("eu.mistral.pixtral-large-2502-v1:0", "", "anywhere"),
        ("us.amazon.nova-lite-v1:0", "eu", "anywhere"),
        ("global.amazon.nova-lite-v1:0", "global", "anywhere"),
        ("acme.model", "eu", "hidden"),
        ("eu.acme.model", "eu", "hidden"),
        ("abcdefgh1234", "eu", "hidden"),
        ("arn:aws:bedrock:eu-central-1::foundation-model/openai.gpt-oss-120b-1:0", "eu", "hidden"),
        ("EU.mistral.pixtral-large-2502-v1:0", "eu", "hidden"),
        ("openai.", "eu", "hidden"),
    ],
)
def test_reach_follows_from_the_id_alone(model, geography, reach):
    assert bedrock.reach(model, geography) == reach


def test_reach_is_what_the_charts_say_of_every_fallback():
    for name in sorted(ROUTES):
        router = router_of(name)
        for cluster in router.clusters:
            if cluster.name.startswith("bedrock/"):
                said = cluster.facts
                assert said["reach"] == bedrock.reach(said["model_version"], router.home[envoy.GEOGRAPHY]), cluster.name


@pytest.mark.parametrize(
    ("value", "shape", "found"),
    [
        ({"a": 1}, {"a": int}, 0),
        ({"a": True}, {"a": int}, 1),
        ({"a": 0}, {"a": {False}}, 1),
        ({"a": ["x"]}, {"a": {"x"}}, 1),
        ({"a": "1"}, {"a": int}, 1),
        ({"a": {"b": 1}}, {"a": Each(int)}, 0),
        ({"b": 1}, {"a": int}, 1),
        ([], {"a": int}, 1),
        (None, {"a": int}, 1),
    ],
)
def test_a_shape_takes_what_it_names_and_nothing_else(value, shape, found):
    assert len(list(unknown(value, shape))) == found


def test_every_shape_refuses_an_unknown_field_at_every_depth():
    """Whatever object of a rendered file gets one field more, it is seen: no part of the files is out of sight."""
    router = router_of("prod/router")
    free = (
        "json_format",
        "filter_context",
        "outlier_detection",
        "filter_metadata",
        "thresholds",
        "tcp_keepalive",
        "map",
    )

    def objects(value, path=()):
        if isinstance(value, dict):
            if not any(part in free for part in path):
                yield value
            for key, inside in value.items():
                yield from objects(inside, (*path, key))
        elif isinstance(value, list):
            for inside in value:
                yield from objects(inside, path)

    for kind, shape in FILES.items():
        for file in router.of(kind):
            parsed = json.loads(file.written)
            places = [place for place in objects(parsed) if not set(place) & set(free)]
            assert len(places) >= 3
            for place in places:
                place["cluster_header"] = "x"
                assert any("cluster_header" in path for path, _ in unknown(parsed, shape)), place
                del place["cluster_header"]


def test_flags_are_read_as_vllm_reads_them():
    container = {"args": ["serve", "/m", "--a_b=1", "--C", "2", "--d", "--served-model-name", "x", "y"]}
    assert engines.flags(container) == [("a-b", "1"), ("c", "2"), ("d", ""), ("served-model-name", "x")]


def test_the_tables_of_the_charts_are_read():
    assert "enable-log-requests" in engines.of_reason("plane.ownedFlags", "write prompts")
    with pytest.raises(ValueError, match="no reason of plane.ownedFlags has the word"):
        engines.of_reason("plane.ownedFlags", "no such reason")


# What stands in a folder in another form than the charts render it in.


@pytest.fixture
def folder(tmp_path):
    """Writes a render, changed by a mutation's function, as it is given; returns what the rules say of the folder."""

    def judge(write):
        objects = copy.deepcopy(mutations.source("prod").judged)
        write(objects, tmp_path)
        return {(rule, name) for s in sources.folder(tmp_path) for rule, name, *_ in mutations.judge(s.judged)}

    return judge


def test_many_documents_in_one_file_are_judged_as_one_render(folder):
    def write(objects, root):
        (root / "all.yaml").write_text(yaml.safe_dump_all(objects))

    assert folder(write) == set()


def test_the_last_of_many_documents_is_judged(folder):
    def write(objects, root):
        service = mutations.find(objects, "Service", "appeals-draft")
        service["spec"]["type"] = "LoadBalancer"
        objects.append(objects.pop(objects.index(service)))
        (root / "all.yaml").write_text("---\n" + yaml.safe_dump_all(objects) + "---\n---\n")

    assert ("PLANE_RES_04", "v1 Service inference/appeals-draft") in folder(write)


def test_anchors_and_merges_are_what_they_stand_for(folder):
    def write(objects, root):
        objects.remove(mutations.find(objects, "NetworkPolicy", "clinical-summary"))
        (root / "all.yaml").write_text(yaml.safe_dump_all(objects))
        (root / "policy.yaml").write_text(
            """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: clinical-summary, namespace: inference}
spec:
  podSelector: &engine
    matchLabels: {app.kubernetes.io/name: clinical-summary, app.kubernetes.io/component: engine}
  policyTypes: [Ingress, Egress]
  ingress:
    - &wide
      from: [{podSelector: *engine}]
      ports: [{port: 8000}]
  egress:
    - <<: {ports: [{port: 443}]}
      to: [{ipBlock: {cidr: 0.0.0.0/0}}]
"""
        )

    found = {rule for rule, name in folder(write) if name.endswith("NetworkPolicy inference/clinical-summary")}
    assert {"PLANE_RES_41", "PLANE_RES_43"} <= found


def test_a_list_of_objects_and_json_are_judged_alike(folder):
    def write(objects, root):
        mutations.find(objects, "Ingress")["metadata"]["annotations"]["alb.ingress.kubernetes.io/scheme"] = "INTERNAL"
        (root / "all.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    assert {rule for rule, _ in folder(write)} == {"PLANE_RES_01"}


def test_configuration_without_its_router_is_no_green_answer(folder):
    def write(objects, root):
        kept = [o for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"].startswith("router-r")]
        (root / "routes.yaml").write_text(yaml.safe_dump_all(kept))

    assert ("PLANE_RES_11", "v1 ConfigMap inference/router-routes") in folder(write)


def test_the_applications_of_this_repository_break_no_rule():
    objects = mutations.source("argocd/").judged
    assert mutations.judge(objects) == [] and len(objects) > 5


def test_every_residency_rule_says_where_it_comes_from():
    for rule in rules.load().values():
        if rule.pack == "residency" and not rule.source.startswith("https://"):
            file, _, heading = rule.source.partition("#")
            text = (checkout.ROOT / file).read_text().lower()
            headings = [line.lstrip("# ").replace(" ", "-") for line in text.splitlines() if line.startswith("#")]
            assert not heading or heading in [h.replace("`", "").replace(",", "").replace(":", "") for h in headings], (
                rule.id
            )

"""Structural schemas and CEL rules of custom resources, with the pinned CRDs and with small ones of one feature."""

import pytest
import yaml

from inference_plane.manifests import Catalogue, check_objects
from inference_plane.manifests.cel import FUNCTIONS, CustomResource, compile_rule


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue()


def test_every_rule_and_pattern_of_the_pinned_crds_compiles(catalogue: Catalogue, capsys: pytest.CaptureFixture):
    resources = {key: CustomResource(schema) for key, schema in catalogue.all().items()}
    refusals = [f"{key}: {r}" for key, resource in resources.items() for r in resource.refusals]
    assert not refusals, refusals
    rules = sum(r.rules for r in resources.values())
    transitions = sum(r.transition_rules for r in resources.values())
    with capsys.disabled():
        print(f"\n{len(resources)} pinned CRD versions: {rules} CEL rules compile, {transitions} need an old object")
    assert {k[2] for k in resources} >= {"ScaledObject", "TriggerAuthentication", "PodMonitor", "PrometheusRule"}
    assert rules >= 27
    patterns = {p for schema in catalogue.all().values() for p in _patterns(schema)}
    from inference_plane.manifests.schema import go_pattern

    assert patterns and all(go_pattern(p) for p in patterns)


@pytest.mark.parametrize(
    ("pattern", "matches", "misses"),
    [
        ("^a$", "a", "a\n"),
        (r"^a\z", "a", "ab"),
        (r"^[$]\$$", "$$", "$"),
        ("^(?i)(abort|warn)?$", "WARN", "warning"),
        ("^((?i)sun|mon)day$", "MONday", "monDAY"),
        ("^[^]a]$", "b", "]"),
    ],
)
def test_go_patterns_keep_their_meaning(pattern: str, matches: str, misses: str):
    from inference_plane.manifests.schema import go_pattern

    assert go_pattern(pattern).search(matches) and not go_pattern(pattern).search(misses)


@pytest.mark.parametrize("pattern", ["^[[:alpha:]]$", r"^\p{L}$", "^a(?i)b|c$", "("])
def test_a_pattern_that_python_cannot_say_is_a_finding(pattern: str):
    found = judge({"type": "string", "pattern": pattern}, "a")
    assert len(found) == 1 and "cannot judge" in found[0]


def _patterns(schema: object):
    if isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            yield schema["pattern"]
        for value in schema.values():
            yield from _patterns(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _patterns(value)


def test_the_groups_in_crds_yaml_are_those_of_the_files(catalogue: Catalogue):
    from inference_plane.manifests.crds import read

    for module in catalogue.modules:
        found = {key[0] for file in catalogue._files(module) for key in read(file)}
        assert found == set(module.groups), f"{module}: set groups: {sorted(found)} in crds.yaml"


SOUND = {
    o["kind"]: o
    for o in yaml.safe_load_all("""
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: engine, labels: {a: b}}
spec:
  scaleTargetRef: {name: engine}
  minReplicaCount: 0
  maxReplicaCount: 8
  triggers: [{type: metrics-api, name: queue, metadata: {url: "http://a", valueLocation: b, targetValue: "1"}}]
---
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata: {name: engine}
spec: {selector: {matchLabels: {a: b}}, podMetricsEndpoints: [{port: metrics, interval: 30s}]}
---
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata: {name: engine}
spec: {groups: [{name: engine, rules: [{alert: Down, expr: up == 0, for: 5m, labels: {severity: page}}]}]}
""")
}


def changed(kind: str, **spec: object) -> dict:
    return {**SOUND[kind], "spec": {**SOUND[kind]["spec"], **spec}}


def test_sound_custom_resources_pass():
    assert check_objects(list(SOUND.values())) == []


@pytest.mark.parametrize(
    ("obj", "path", "words"),
    [
        (changed("ScaledObject", minReplicaCount=9), "spec", "minReplicaCount must be less than or equal to maxRep"),
        (changed("ScaledObject", minReplicaCont=1), "spec", "unknown field 'minReplicaCont': did you mean"),
        (changed("ScaledObject", minReplicaCount="1"), "spec.minReplicaCount", "'1' is not of type integer"),
        (changed("ScaledObject", triggers=[{"type": "cpu"}]), "spec.triggers[0]", "'metadata' is a required property"),
        ({**SOUND["ScaledObject"], "metadata": {"name": "Bad"}}, "metadata.name", "DNS-1123 subdomain"),
        ({**SOUND["ScaledObject"], "metadata": {"name": "a", "labels": {"b": 1}}}, "metadata.labels.b", "not of type"),
        ({**SOUND["ScaledObject"], "metadata": {"name": "a", "label": {}}}, "metadata", "unknown field 'label'"),
        (changed("PodMonitor", podMetricsEndpoints=[{"interval": "30 s"}]), "spec.podMetricsEndpoints[0].interval", ""),
        (changed("PrometheusRule", groups=[{"name": "a"}, {"name": "a"}]), "spec.groups[1]", "duplicate entry"),
        ({**SOUND["PodMonitor"], "apiVersion": "monitoring.coreos.com/v9"}, "", "no schema for PodMonitor"),
    ],
)
def test_what_the_pinned_crds_refuse(obj: dict, path: str, words: str):
    found = check_objects([obj])
    assert [f for f in found if f.path == path and words in f.message], "\n".join(map(str, found)) or "no finding"


def judge(schema: dict, spec: object) -> list[str]:
    """Findings of a CRD whose `spec` has this schema, as `path: message`."""
    root = {"type": "object", "properties": {"spec": schema}}
    obj = {"apiVersion": "example.com/v1", "kind": "Example", "metadata": {"name": "a"}, "spec": spec}
    return [f"{f.path}: {f.message}" for f in CustomResource(root).check(obj)]


def ruled(rule: str, schema: dict, **more: object) -> dict:
    return {**schema, "x-kubernetes-validations": [{"rule": rule, "message": "no", **more}]}


STRING, INTEGER = {"type": "string"}, {"type": "integer"}
STRINGS, INTEGERS = {"type": "array", "items": STRING}, {"type": "array", "items": INTEGER}
FEATURES = [
    # (rule, schema of self, a value that holds, one that does not)
    ("has(self.a) != has(self.b)", {"type": "object", "properties": {"a": STRING, "b": STRING}}, {"a": ""}, {}),
    ("self.all(x, x > 1)", INTEGERS, [2, 3], [1]),
    ("self.exists(x, x == 'a')", STRINGS, ["b", "a"], []),
    ("self.exists_one(x, x == 1)", INTEGERS, [1, 2], [1, 1]),
    ("self.filter(x, x > 1).size() <= 1", INTEGERS, [1, 2], [2, 3]),
    ("self.map(x, x * 2).exists(y, y == 4)", INTEGERS, [2], [3]),
    ("self.all(k, self[k] != '')", {"type": "object", "additionalProperties": STRING}, {"a": "b"}, {"a": ""}),
    ("self.matches('^a+$')", STRING, "aa", "ab"),
    ("self.startsWith('a') && self.endsWith('c') && self.contains('b')", STRING, "abc", "abd"),
    ("self in ['x', 'y']", STRING, "x", "z"),
    ("(self > 0 ? self : 1) < 5", INTEGER, 0, 5),
    ("self / 2.0 < 1.5", {"type": "number"}, 2, 3),
    ("self >= duration('30s')", {"type": "string", "format": "duration"}, "1m", "10s"),
    (
        "self < timestamp('2026-01-01T00:00:00Z')",
        {"type": "string", "format": "date-time"},
        "2025-01-01T00:00:00Z",
        "2027-01-01T00:00:00Z",
    ),
    ("type(self) == int ? self > 1 : self == 'all'", {"x-kubernetes-int-or-string": True}, "all", 1),
    (
        "self.__namespace__ == 'a'",
        {"type": "object", "properties": {"namespace": STRING}},
        {"namespace": "a"},
        {"namespace": "b"},
    ),
    ("self.x__dash__y == 'a'", {"type": "object", "properties": {"x-y": STRING}}, {"x-y": "a"}, {"x-y": "b"}),
    ("self.charAt(1) == 'b'", STRING, "ab", "ba"),
    ("quantity(self).compareTo(quantity('1k')) == 0", STRING, "1000", "1Ki"),
    ("quantity(self).isGreaterThan(quantity('1Gi'))", STRING, "1025Mi", "1023Mi"),
    ("quantity(self).isLessThan(quantity('1'))", STRING, "999m", "1"),
    ("isQuantity(self)", STRING, "44.7Gi", "banana"),
    ("self.find('^([^/]+)') == 'karpenter.sh'", STRING, "karpenter.sh/nodepool", "a/b"),
    ("self.findAll('[0-9]+').size() == 2", STRING, "1 and 2", "1"),
    ("self.indexOf('b') == 1", STRING, "ab", "ba"),
    ("isCIDR(self)", STRING, "10.0.0.0/8", "10.0.0.0"),
    ("isIP(self)", STRING, "::1", "10.0.0.0/8"),
    ("isURL(self)", STRING, "https://a.example/b", "a.example"),
    ("self.isSorted()", INTEGERS, [1, 2], [2, 1]),
    ("self.join(',') == 'a,b'", STRINGS, ["a", "b"], ["a"]),
    ("self.lowerAscii() == 'a'", STRING, "A", "B"),
    ("self.upperAscii() == 'A'", STRING, "a", "b"),
    ("self.max() < 3", INTEGERS, [1, 2], [1, 3]),
    ("self.min() > 1", INTEGERS, [2, 3], [1, 3]),
    ("self.sum() == 3", INTEGERS, [1, 2], [1]),
    ("self.replace('a', 'b') == 'bb'", STRING, "ab", "ac"),
    ("self.split('=')[0] == 'key'", STRING, "key=a", "a=key"),
    ("self.substring(1, 3) == 'bc'", STRING, "abcd", "aaaa"),
    ("self.trim() == 'a'", STRING, " a ", " b "),
]


@pytest.mark.parametrize(("rule", "schema", "holds", "fails"), FEATURES, ids=[f[0] for f in FEATURES])
def test_a_feature_of_cel_tells_a_good_value_from_a_bad_one(rule: str, schema: dict, holds: object, fails: object):
    assert judge(ruled(rule, schema), holds) == []
    assert judge(ruled(rule, schema), fails) == ["spec: no"]


def test_every_function_supplied_has_such_a_test():
    untested = [name for name in FUNCTIONS if not any(f"{name}(" in f[0] for f in FEATURES)]
    assert not untested


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("self.?a.orValue(1) == 1", "unsupported syntax"),
        ("self.size( > 1", "cannot judge"),
        ("self.a.b == 1", "KeyError"),
        ("self.size() + 'a' == 1", "No such overload"),
        ("self.size()", "not true or false"),
        # The engine would never reach the unknown function here, so it is found before the rule runs.
        ("true || cidr('10.0.0.0/8').containsIP('10.0.0.1')", "no such function here: cidr, containsIP"),
    ],
)
def test_a_rule_that_cannot_be_judged_is_a_finding(rule: str, words: str):
    found = judge(ruled(rule, {"type": "object", "properties": {"a": {"type": "object"}}}), {"a": {}})
    assert len(found) == 1 and "cannot judge" in found[0] and words in found[0], found


def test_transition_rules_do_not_run_on_create_and_are_counted():
    rules = [{"rule": "self == oldSelf"}, {"rule": "!oldSelf.hasValue() && self == 'a'", "optionalOldSelf": True}]
    schema = {"type": "object", "properties": {"spec": {**STRING, "x-kubernetes-validations": rules}}}
    resource = CustomResource(schema)
    assert (resource.rules, resource.transition_rules) == (2, 1)
    assert not compile_rule(rules[0]).on_create and compile_rule(rules[1]).on_create
    assert judge(schema["properties"]["spec"], "a") == []
    assert judge(schema["properties"]["spec"], "b") == [f"spec: failed rule: {rules[1]['rule']}"]


def test_a_message_expression_speaks_and_the_message_stands_in_where_it_fails():
    assert judge(ruled("self < 3", INTEGER, messageExpression="'got ' + string(self)"), 4) == ["spec: got 4"]
    assert judge(ruled("self < 3", INTEGER, messageExpression="'got ' + self"), 4) == ["spec: no"]
    assert judge(ruled("self < 3", INTEGER, messageExpression="'got "), 4) == ["spec: no"]


def test_a_rule_names_the_field_that_it_points_at():
    schema = {"type": "object", "properties": {"a": INTEGER}}
    assert judge(ruled("self.a < 3", schema, fieldPath=".a"), {"a": 4}) == ["spec.a: no"]


def test_rules_run_below_properties_items_and_map_values_and_name_the_place():
    leaf = ruled("self > 0", INTEGER)
    schema = {"type": "object", "additionalProperties": {"type": "array", "items": leaf}}
    assert judge(schema, {"x.y": [1, 0]}) == ["spec['x.y'][1]: no"]


def test_defaults_are_filled_in_before_rules_run():
    mode = {"type": "string", "default": "a"}
    schema = {"type": "object", "properties": {"o": {"type": "object", "default": {}, "properties": {"mode": mode}}}}
    for spec in ({}, {"o": {}}, {"o": {"mode": None}}):
        assert judge(ruled("self.o.mode == 'a'", schema), spec) == []
    assert judge(ruled("self.o.mode == 'a'", schema), {"o": {"mode": "b"}}) == ["spec: no"]


@pytest.mark.parametrize(
    ("schema", "holds", "fails"),
    [
        ({"x-kubernetes-int-or-string": True, "anyOf": [INTEGER, STRING]}, 1, 1.5),
        ({**STRING, "nullable": True}, None, 1),
        (STRING, "a", None),
        ({"type": "object", "properties": {"a": STRING}}, {"a": "b"}, {"b": "c"}),
        ({"type": "object"}, {}, {"a": 1}),
        (
            {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {"a": STRING}},
            {"b": 1},
            {"a": 1},
        ),
        ({"type": "object", "additionalProperties": INTEGER}, {"a": 1}, {"a": "b"}),
        (
            {"type": "object", "x-kubernetes-embedded-resource": True, "properties": {"spec": {"type": "object"}}},
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {}},
            {"kind": "Pod", "spec": {}},
        ),
        ({**STRINGS, "x-kubernetes-list-type": "set"}, ["a", "b"], ["a", "a"]),
        ({**STRING, "pattern": "^a$"}, "a", "a\n"),
        ({**STRING, "format": "date-time"}, "2026-01-01T00:00:00Z", "yesterday"),
    ],
)
def test_structural_schema(schema: dict, holds: object, fails: object):
    assert judge(schema, holds) == []
    assert len(judge(schema, fails)) == 1


def test_rules_wait_until_the_schema_holds():
    schema = {"type": "object", "properties": {"a": INTEGER}}
    assert judge(ruled("self.a > 0", schema), {"a": "x"}) == ["spec.a: 'x' is not of type integer"]

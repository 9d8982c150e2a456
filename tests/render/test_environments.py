"""What the environments' files promise of each other, and production's of itself."""

import collections
import ipaddress

import pytest
import yaml

from inference_plane import helm
from inference_plane.checkout import VALUES
from inference_plane.commands import iam
from inference_plane.environments import environments
from inference_plane.onehost.router import xds_files

NAMES = ("auto-mode", "dev", "local", "neuron", "prod-dr", "prod", "staging")

#: Where members' health records are.
PRODUCTION = ("prod", "prod-dr")

#: What an entry of the other Region may say differently. Not its residency, nor where it falls back to.
DIFFERS = {"replicas", "canary"}


def load(name):
    return yaml.safe_load((VALUES / f"{name}.yaml").read_text())


def test_every_environment_is_here():
    assert [path.stem for path in environments()] == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_no_model_is_without_an_owner_where_teams_are_named(name):
    shared = load(name)["global"]
    if teams := shared.get("teams"):
        assert {entry.get("team") for entry in shared["models"].values()} <= set(teams)
        assert all(team["costCenter"] for team in teams.values())


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_from_a_bucket_of_the_region_where_a_bucket_names_one(name):
    shared = load(name)["global"]
    for entry in shared["models"].values():
        bucket = entry["source"].split("/")[2]
        assert bucket.endswith(shared["aws"]["region"]) or not any(part.isdigit() for part in bucket.split("-"))


def test_the_other_region_has_production_s_entries():
    here, there = load("prod")["global"], load("prod-dr")["global"]
    moved = yaml.safe_load(yaml.safe_dump(here).replace(here["aws"]["region"], there["aws"]["region"]))
    for shared in ("residency", "teams", "modelDefaults"):
        assert there[shared] == moved[shared]
    assert there["models"].keys() == moved["models"].keys()
    for name, entry in there["models"].items():
        assert {k: v for k, v in entry.items() if k not in DIFFERS} == {
            k: v for k, v in moved["models"][name].items() if k not in DIFFERS}
        assert entry["replicas"]["min"] <= moved["models"][name]["replicas"]["min"]
        # It must be able to grow to what the lost Region had.
        assert entry["replicas"].get("max") == moved["models"][name]["replicas"].get("max")


def test_the_other_region_has_room_for_all_that_the_lost_one_may_run():
    """Otherwise the upgrade of that day is refused, or replicas stay Pending."""
    values, lost = load("prod-dr"), load("prod")["global"]["models"]
    needed = collections.Counter()
    for name, entry in values["global"]["models"].items():
        entry["replicas"] = lost[name]["replicas"]
        most = entry["replicas"].get("max", entry["replicas"]["min"])
        pool = f"inference-{entry['accelerator']}-{entry.get('traffic', 'interactive')}"
        needed[pool] += most * entry.get("tensorParallelSize", 1)
    pools = helm.template("inference-plane", values=values).of_kind("NodePool")
    limits = {pool["metadata"]["name"]: pool["spec"]["limits"]["nvidia.com/gpu"] for pool in pools}
    assert needed.keys() == limits.keys() and all(needed[pool] <= limits[pool] for pool in needed)


def test_a_prompt_of_production_reaches_what_its_entry_says_and_no_more():
    """The same by Envoy's files as by the values, in both Regions."""
    for name in PRODUCTION:
        shared = load(name)["global"]
        rendered = helm.template("inference-plane", values=load(name))
        labels = [pod["spec"]["template"]["metadata"]["labels"] for pod in rendered.of_kind("Deployment")]
        # Nothing by an inference profile: the contract is with Bedrock in this Region.
        assert {found.get("inference-plane/residency") for found in labels} == {None, "cluster", "region"}
        data = xds_files(rendered)
        clusters = {c["name"]: c for c in yaml.safe_load(data["clusters.json"])["resources"]}
        bedrock = {cluster.removeprefix("bedrock/") for cluster in clusters if cluster.startswith("bedrock/")}
        assert bedrock == {model for model, entry in shared["models"].items() if entry.get("fallback")}
        for model in bedrock:
            (group,) = clusters[f"bedrock/{model}"]["load_assignment"]["endpoints"]
            (endpoint,) = group["lb_endpoints"]
            host = endpoint["endpoint"]["address"]["socket_address"]["address"]
            assert host == f"bedrock-runtime.{shared['aws']['region']}.amazonaws.com"
        assert shared["models"]["clinical-summary"]["residency"] == "cluster"
        assert "clinical-summary" not in bedrock


@pytest.mark.parametrize("name", PRODUCTION)
def test_production_lets_in_whom_it_names_and_nobody_of_the_internet(name):
    rendered = helm.template("inference-plane", values=load(name))
    guarded = [policy["spec"]["podSelector"]["matchLabels"].items() for policy in rendered.of_kind("NetworkPolicy")]
    for deployment in rendered.of_kind("Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"].items()
        assert any(selected <= labels for selected in guarded), deployment["metadata"]["name"]
    (ingress,) = rendered.of_kind("Ingress")
    said = {key.rpartition("/")[2]: value for key, value in ingress["metadata"]["annotations"].items()}
    assert said["scheme"] == "internal" and '"HTTPS"' in said["listen-ports"] and '"HTTP"' not in said["listen-ports"]
    assert all(ipaddress.ip_network(cidr).is_private for cidr in said["inbound-cidrs"].split(","))


@pytest.mark.parametrize("name", PRODUCTION)
def test_production_has_alerts_of_the_router_of_every_model_and_of_every_fleet(name):
    rendered = helm.template("inference-plane", values=load(name))
    services = {service["metadata"]["name"] for service in rendered.of_kind("Service")}
    # What decides shares is watched with the router, what counts token budgets from it: it notices first.
    services -= {"router-policy", "router-ratelimit", "router-valkey"}
    expected = services | {f"router.{model}" for model in load(name)["global"]["models"]}
    assert {rule["metadata"]["name"] for rule in rendered.of_kind("PrometheusRule")} == expected


def test_no_two_environments_of_an_account_have_a_role_of_one_name():
    """Roles belong to the account: the second would take the first one's cluster out of its trust."""
    owners = {}
    for name in NAMES:
        if account := load(name)["global"].get("aws", {}).get("accountId"):
            for role in iam.roles(load(name)):
                assert owners.setdefault((account, role["name"]), name) == name
    assert len({account for account, _ in owners}) < len(set(owners.values())), "some share an account"

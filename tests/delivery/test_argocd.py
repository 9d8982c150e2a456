"""The Argo CD objects: valid, allowed, and rendering what the umbrella renders."""

import functools
import pathlib
import re
import sys

import pytest
import yaml

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import argo  # noqa: E402

from inference_plane import argocd, helm  # noqa: E402
from inference_plane.checkout import CHARTS, ROOT  # noqa: E402
from inference_plane.environments import cases  # noqa: E402
from inference_plane.kube import group_version  # noqa: E402
from inference_plane.manifests import check, check_objects  # noqa: E402

DOCUMENTS = argo.documents()
APPLICATIONS = argo.applications()
CHARTED = [(file, app) for file, app in APPLICATIONS if "helm" in app["spec"]["source"]]
PROJECTS = {project["metadata"]["name"]: project for _, project in argo.of_kind("AppProject")}
PLANE = PROJECTS["inference-plane"]

#: Groups whose kinds every Kubernetes has.
BUILT_IN = {"", "apps", "batch", "networking.k8s.io", "policy", "scheduling.k8s.io", "rbac.authorization.k8s.io"}

#: What `syncOptions` may hold (Argo CD passes over what it does not know): `gitops-engine/pkg/sync/common/types.go`,
#: and `controller/sync.go` of Argo CD 3.5.
SYNC_OPTIONS = set(
    """ApplyOutOfSyncOnly=true ClientSideApplyMigration=false CreateNamespace=true Delete=confirm Delete=false
    FailOnSharedResource=true Prune=confirm Prune=false PruneLast=true RespectIgnoreDifferences=true
    ServerSideApply=true SkipDryRunOnMissingResource=true""".split()
)

named = functools.partial(pytest.mark.parametrize, ids=lambda v: v if isinstance(v, str) else v["metadata"]["name"])


@named(("file", "document"), DOCUMENTS)
def test_every_object_is_what_argo_cd_takes(file, document):
    assert [str(finding) for finding in check_objects([document])] == []


@pytest.mark.parametrize("wrong", ["valuesFiles: [a.yaml]", "valueFiles: a.yaml", "skipTest: true"])
def test_a_typo_is_found(wrong):
    application = argo.of_kind("Application")[0][1]
    source = application["spec"]["source"]
    broken = source | {"helm": source["helm"] | yaml.safe_load(wrong)}
    assert check_objects([application | {"spec": application["spec"] | {"source": broken}}])


def test_names_are_one_object_each():
    names = [app["metadata"]["name"] for _, app in APPLICATIONS]
    assert len(names) == len(set(names))


@named(("file", "application"), APPLICATIONS)
def test_sync_options_are_known_and_guard_what_others_own(file, application):
    options = application["spec"]["syncPolicy"]["syncOptions"]
    assert len(options) == len(set(options)) and set(options) <= SYNC_OPTIONS
    assert {"FailOnSharedResource=true", "ServerSideApply=true"} <= set(options)
    # KEDA owns replicas where they change, and no chart renders them there: nothing is ignored.
    assert "ignoreDifferences" not in application["spec"]


@named(("file", "application"), APPLICATIONS)
def test_nothing_is_pruned_or_healed_without_a_person(file, application):
    automated = application["spec"]["syncPolicy"]["automated"]
    assert automated["prune"] is False
    # What is scaled by hand in an incident stays so. The Applications themselves are not touched in one.
    assert automated["selfHeal"] is ("helm" not in application["spec"]["source"])
    # Without a finalizer, deleting the Application deletes nothing else.
    assert "finalizers" not in application["metadata"]
    source = application["spec"]["source"].get("helm", {})
    assert "ignoreMissingValueFiles" not in source and "skipSchemaValidation" not in source


@named(("file", "appset"), argo.of_kind("ApplicationSet"))
def test_an_element_that_is_taken_out_deletes_nothing(file, appset):
    policy = appset["spec"]["syncPolicy"]
    assert policy == {"applicationsSync": "create-update", "preserveResourcesOnDeletion": True}


@named(("file", "application"), APPLICATIONS)
def test_paths_and_value_files_exist(file, application):
    assert (ROOT / application["spec"]["source"]["path"]).is_dir()
    if "helm" in application["spec"]["source"]:
        assert argocd.value_files(application)


@named(("file", "application"), [(file, app) for file, app in CHARTED if file.startswith("argocd/")])
def test_a_cluster_gets_the_file_of_its_own_environment(file, application):
    """Another's file is valid too, and would put its models, with their residencies, onto this cluster."""
    environment = application["spec"]["destination"]["name"].removeprefix("inference-")
    assert application["spec"]["source"]["helm"]["valueFiles"] == [f"/values/{environment}.yaml"]


@named(("file", "application"), APPLICATIONS)
def test_a_revision_is_main_or_the_release_of_these_charts(file, application):
    version = yaml.safe_load((CHARTS / "inference-plane" / "Chart.yaml").read_text())["version"]
    revision = application["spec"]["source"]["targetRevision"]
    assert revision in ("main", f"v{version}")
    if application["spec"]["destination"].get("name", "").startswith("inference-prod") and "examples" not in file:
        assert revision == f"v{version}", "production follows releases"


@named(("file", "application"), APPLICATIONS)
def test_the_project_lets_the_application_do_what_it_says(file, application):
    project = PROJECTS[application["spec"]["project"]]["spec"]
    destination = application["spec"]["destination"]
    assert application["spec"]["source"]["repoURL"] in project["sourceRepos"]
    if "CreateNamespace=true" in application["spec"]["syncPolicy"]["syncOptions"]:
        assert argo.permits(project["clusterResourceWhitelist"], "", "Namespace", destination["namespace"])
    objects = (
        argocd.render(application)
        if "helm" in application["spec"]["source"]
        else [o for f, o in DOCUMENTS if f.startswith(application["spec"]["source"]["path"])]
    )
    assert objects
    for document in objects:
        group, kind = group_version(document)[0], document["kind"]
        if argo.is_cluster_scoped(document):
            assert argo.permits(project["clusterResourceWhitelist"], group, kind, document["metadata"]["name"])
        else:
            namespace = document["metadata"].get("namespace", destination["namespace"])
            assert argo.permits(project["namespaceResourceWhitelist"], group, kind), f"{group}/{kind}"
            assert argo.reaches(PROJECTS[application["spec"]["project"]], destination, namespace), namespace


def test_the_projects_refuse_what_the_plane_has_no_business_with():
    for project in PROJECTS.values():
        # No wildcard beside it: a chart from anywhere else could open what the plane's own keep closed.
        assert project["spec"]["sourceRepos"] == ["https://github.com/inference-plane/inference-plane.git"]
    cluster, own = PLANE["spec"]["clusterResourceWhitelist"], PLANE["spec"]["namespaceResourceWhitelist"]
    assert not argo.permits(cluster, "rbac.authorization.k8s.io", "ClusterRoleBinding", "inference")
    assert not argo.permits(cluster, "", "Namespace", "kube-system")
    assert not argo.permits(own, "", "Secret") and not argo.permits(own, "argoproj.io", "Application")
    production = {"name": "inference-prod"}
    assert argo.reaches(PLANE, production, "inference") and not argo.reaches(PLANE, production, "kube-system")
    assert not argo.reaches(PLANE, {"server": "https://kubernetes.default.svc"}, "argocd")
    apps = PROJECTS["inference-plane-apps"]
    assert "clusterResourceWhitelist" not in apps["spec"]
    assert not argo.permits(apps["spec"]["namespaceResourceWhitelist"], "argoproj.io", "AppProject")


def test_the_project_allows_exactly_the_kinds_that_the_charts_render():
    rendered = {
        (argo.is_cluster_scoped(document), group_version(document)[0], document["kind"])
        for case in cases()
        for document in argocd.without_tests(helm.template(case.chart, values=case.values).objects)
    }
    allowed = {(True, e["group"], e["kind"]) for e in PLANE["spec"]["clusterResourceWhitelist"]}
    allowed |= {(False, e["group"], e["kind"]) for e in PLANE["spec"]["namespaceResourceWhitelist"]}
    lists = {True: "clusterResourceWhitelist", False: "namespaceResourceWhitelist"}
    say = lambda entries: sorted(
        f"{lists[scope]}: {{group: {group!r}, kind: {kind}}}" for scope, group, kind in entries
    )
    assert say(rendered | {(True, "", "Namespace")}) == say(allowed)


@named(("file", "application"), CHARTED)
def test_what_an_application_renders_is_valid_and_fits_together(file, application):
    # With the tests, since a policy stands for their pods, which people start by hand.
    objects = argocd.render(application, tests=True)
    # The load balancer of one Application is in front of the router of another, in any split.
    namespace = application["spec"]["destination"]["namespace"]
    external = [f"Service {namespace}/router", f"ConfigMap {namespace}/payer-authorities"]  # trust-manager's
    assert [str(f) for f in check(objects, namespace=namespace, external=external)] == []


@named(("file", "application"), CHARTED)
def test_custom_resources_wait_for_their_definitions(file, application):
    groups = {group_version(document)[0] for document in argocd.render(application)}
    options = application["spec"]["syncPolicy"]["syncOptions"]
    assert not groups - BUILT_IN or "SkipDryRunOnMissingResource=true" in options


def test_applications_of_one_namespace_agree_about_it():
    """Argo CD applies a namespace's metadata anew with each of them."""
    said = {}
    for _, application in CHARTED:
        destination = application["spec"]["destination"]
        metadata = application["spec"]["syncPolicy"]["managedNamespaceMetadata"]
        assert said.setdefault((destination["name"], destination["namespace"]), metadata) == metadata
    for metadata in said.values():
        assert metadata["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
        assert metadata["labels"]["elbv2.k8s.aws/pod-readiness-gate-inject"] == "enabled"


def prod():
    return [application for file, application in APPLICATIONS if file.startswith("argocd/prod/")]


def off(application):
    return {
        name
        for name, part in application["spec"]["source"]["helm"]["valuesObject"].items()
        if part == {"enabled": False}
    }


def test_each_chart_is_in_exactly_one_part_of_production():
    dependencies = yaml.safe_load((CHARTS / "inference-plane" / "Chart.yaml").read_text())["dependencies"]
    charts = {dependency["name"] for dependency in dependencies if "condition" in dependency}
    for chart in charts:
        parts = [a["metadata"]["name"] for a in prod() if chart not in off(a)]
        assert len(parts) == 1, f"{chart} is on in {parts}: turn it off in valuesObject of all but one of argocd/prod/"
    for application in prod():
        # A part only turns off: what is on is the environment's file to say.
        assert off(application) == set(application["spec"]["source"]["helm"]["valuesObject"])


@pytest.mark.parametrize(
    "environment", [case for case in cases() if case.chart == "inference-plane"], ids=lambda c: c.name
)
def test_the_parts_of_production_are_the_umbrella_whole(environment, tmp_path):
    """The three Applications, over each environment's file: exactly the objects of the one release, each once."""
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(environment.values))
    parts = []
    for application in prod():
        settings = application["spec"]["source"]["helm"]
        rendered = helm.template("inference-plane", files=[values], values=settings["valuesObject"])
        assert settings["releaseName"] == "plane" and application["spec"]["destination"]["namespace"] == "inference"
        parts += argocd.without_tests(rendered.objects)
    whole = argocd.without_tests(helm.template("inference-plane", files=[values]).objects)
    assert argo.canonical(parts) == argo.canonical(whole)


def test_the_waves_bring_nodes_then_the_router_then_engines():
    wave = {a["metadata"]["name"]: int(a["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"]) for a in prod()}
    assert wave["inference-prod-cluster"] < wave["inference-prod-plane"] < wave["inference-prod-engines"]


def test_the_teams_and_the_engines_of_production_are_the_same_engines():
    """teams.yaml comes instead of prod/engines.yaml: no model is lost between them, and none is there twice."""
    engines = next(a for a in prod() if a["metadata"]["name"] == "inference-prod-engines")
    teams = [application for file, application in APPLICATIONS if file == "argocd/teams.yaml"]
    models = lambda app: [
        o["metadata"]["name"] for o in argocd.render(app) if "inference-plane/model" in o["metadata"].get("labels", {})
    ]
    assert sorted(name for app in teams for name in models(app)) == sorted(models(engines))


def test_node_pools_outlive_a_prune():
    """Deleting a NodePool ends its nodes."""
    pools = [
        document
        for case in cases()
        for document in helm.template(case.chart, values=case.values).objects
        if document["kind"] in ("NodePool", "EC2NodeClass", "NodeClass")
    ]
    assert {"NodePool", "EC2NodeClass", "NodeClass"} == {document["kind"] for document in pools}
    for document in pools:
        options = document["metadata"]["annotations"]["argocd.argoproj.io/sync-options"].split(",")
        assert {"Prune=false", "Delete=false"} <= set(options) <= SYNC_OPTIONS


#: What a template cannot have where nobody asks a cluster, and where every render is as if for the first time.
UNSTEADY = re.compile(
    r"\b(?:lookup|now|uuidv4|rand(?:Alpha|Numeric|Ascii|Bytes|Int)\w*|gen\w*(?:Cert|CA|Key)\w*)\b"
    r"|\.Release\.(?:IsInstall|IsUpgrade|Revision)|\.Capabilities"
)


def unsteady(template):
    """The unsteady words in a template's actions, comments and strings left out."""
    code = re.sub(r"\{\{-?\s*/\*.*?\*/\s*-?\}\}", "", template, flags=re.S)
    actions = " ".join(re.findall(r"\{\{.*?\}\}", code, re.S))
    return UNSTEADY.findall(re.sub(r'"[^"]*"', "", actions))


def test_templates_render_the_same_without_a_cluster():
    files = sorted(CHARTS.glob("*/templates/**/*.*"))
    assert {str(file.relative_to(CHARTS)): found for file in files if (found := unsteady(file.read_text()))} == {}
    wrong = (
        '{{/* now */}} now {{ if .Capabilities.APIVersions.Has "now" }}{{ randAlphaNum 8 }}{{ genCA "a" 1 }}{{ end }}'
    )
    assert unsteady(wrong) == [".Capabilities", "randAlphaNum", "genCA"]

"""The rules between fields of the catalogue, each by its exact text."""

import json
import pathlib
from typing import Any

import pytest
import yaml

from inference_plane import checkout, helm, schemas

SUMMARY = {"source": "s3://models/summary/v7/", "weightsGiB": 15.3, "accelerator": "l40s", "maxModelLen": 16384}
FALLBACK = {"model": "openai.gpt-oss-120b-1:0", "retention": "none"}

#: Of the router, in the umbrella.
AUTH = {"issuer": "https://i.example", "audiences": ["inference"], "jwks": {"inline": {"keys": [{"kty": "RSA"}]}}}

#: Values that fit together; each case changes as little as it can.
BASE = {
    "global": {
        "aws": {"region": "eu-central-1"},
        "tls": {"mode": "none"},
        "network": {"s3Cidrs": ["10.0.1.0/24"], "bedrockCidrs": ["10.0.2.0/24"], "albSubnetCidrs": ["10.0.3.0/24"],
                    "apiServerCidrs": ["10.0.4.0/28"]},
        "teams": {"appeals": {"costCenter": "4711"}, "claims": {}},
        "models": {"summary": SUMMARY},
    }
}


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A chart of nothing but the library's validation, so that a case costs one small render."""
    folder = tmp_path_factory.mktemp("charts") / "catalogue"
    (folder / "charts").mkdir(parents=True)
    (folder / "charts" / "plane-lib").symlink_to(checkout.CHARTS / "plane-lib")
    metadata = yaml.safe_load((checkout.CHARTS / "router" / "Chart.yaml").read_text())
    (folder / "Chart.yaml").write_text(yaml.safe_dump(metadata | {"name": "catalogue", "description": "a test's"}))
    source = folder / "values.schema.yaml"
    source.write_text("type: object\nproperties:\n  global: {$ref: '#/definitions/global'}\n")
    (folder / "values.schema.json").write_text(schemas.generate(source))
    (folder / "templates").mkdir()
    (folder / "templates" / "validate.yaml").write_text('{{ include "plane.validateCatalogue" . }}')
    (folder / "templates" / "models.yaml").write_text('kind: Models\nmodels: {{ include "plane.models" . }}')
    (folder.parent / "base.yaml").write_text(yaml.safe_dump(BASE))
    return folder


def refusals(chart: pathlib.Path, overlay: dict[str, Any]) -> list[str]:
    """The lines of the one refusal, without their dashes; none where Helm renders."""
    try:
        helm.template(chart, files=[chart.parent / "base.yaml"], values={"global": overlay})
    except helm.HelmError as error:
        text = str(error)
        assert text.count("values of the catalogue do not fit together:\n- ") == 1, text
        return [line.removeprefix("- ") for line in text.splitlines() if line.startswith("- ")]
    return []


def resolved(chart: pathlib.Path, overlay: dict[str, Any]) -> dict[str, Any]:
    """The catalogue as the charts see it."""
    render = helm.template(chart, files=[chart.parent / "base.yaml"], values={"global": overlay})
    (document,) = render.of_kind("Models")
    return document["models"]


def one(**fields: Any) -> dict[str, Any]:
    """An overlay that changes fields of the one model."""
    return {"models": {"summary": fields}}


def bedrock(model: str, residency: str, retention: str = "none") -> dict[str, Any]:
    return one(residency=residency, fallback={"model": model, "retention": retention})


M = "global.models.summary"
MOVING = (
    "What a moving name holds changes without a rollout, and no audit can tell which weights answered. "
    "Set a path with a version at its end, such as s3://models/clinical-summary/v7/."
)
PLAIN = (
    "is not a bucket, a prefix and a version of plain characters. A role may read exactly one prefix, so the source "
    "must name one, without wildcards. Set s3://BUCKET/PREFIX/VERSION/ of letters, digits, '.', '_', '=' and '-', "
    "or file:///FOLDER/VERSION/."
)
FARTHER = "A prompt travels no farther than its residency"
HIDDEN = (
    "hides where it processes. An ARN, an application inference profile, a prompt router or an unlisted prefix does "
    "not show its destinations. Set a foundation-model id such as openai.gpt-oss-120b-1:0, or add a new provider to "
    "global.bedrock.providers."
)
SHARED = "Where the provider keeps them is not known. Set the account's mode to none and retention: none, or residency"
DEFAULTS = yaml.safe_load((checkout.CHARTS / "plane-lib" / "values.yaml").read_text())["defaults"]
IMAGES = ", ".join(sorted(DEFAULTS["images"]))
DIGEST = "the digest (sha256:...) that the registry gives for it, or global.requireDigest: false"
ABSENT = "absent. Neither the entry nor its profile nor global.modelDefaults has one. Set it in one of them."
OTHER_NAME = "A request names exactly one model. Set a name that no other entry has."
DENY = "The NetworkPolicies deny what nobody names. Set the CIDRs of the endpoint, or global.network.policies: false."
ANY = (
    "is a large part of all addresses. It would let prompts and weights go anywhere and leave the residency unprovable. "
    "Set the CIDRs of the endpoint or the subnets alone."
)
ARN = "arn:aws:bedrock:eu-central-1:111122223333:application-inference-profile/abc.def"
COMPILED = {"tensorParallelSize": 1, "maxModelLen": 16384, "maxNumSeqs": 64}

CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    # Sources.
    "source latest": (
        one(source="s3://models/summary/latest/"),
        [f"{M}.source: s3://models/summary/latest/ passes through latest. {MOVING}"],
    ),
    "source through latest": (
        one(source="s3://models/latest/v7/"),
        [f"{M}.source: s3://models/latest/v7/ passes through latest. {MOVING}"],
    ),
    "source main": (
        one(source="s3://models/summary/main/"),
        [f"{M}.source: s3://models/summary/main/ does not end in an immutable version. {MOVING}"],
    ),
    "source current": (
        one(source="file:///models/summary/current/"),
        [f"{M}.source: file:///models/summary/current/ does not end in an immutable version. {MOVING}"],
    ),
    "source without a prefix": (one(source="s3://models/v7/"), [f"{M}.source: s3://models/v7/ {PLAIN}"]),
    "source without a folder": (one(source="file://summary/v7/"), [f"{M}.source: file://summary/v7/ {PLAIN}"]),
    "source with a wildcard": (one(source="s3://models/*/v7/"), [f"{M}.source: s3://models/*/v7/ {PLAIN}"]),
    "source with an empty prefix": (one(source="s3://models//v7/"), [f"{M}.source: s3://models//v7/ {PLAIN}"]),
    "compiled source": (
        one(compiled={"source": "s3://models/neff/latest/", **COMPILED}),
        [f"{M}.compiled.source: s3://models/neff/latest/ passes through latest. {MOVING}"],
    ),
    # References.
    "accelerator": (
        one(accelerator="l40x"),
        [
            f"{M}.accelerator: l40x is not in global.accelerators. There are "
            f"{', '.join(sorted(DEFAULTS['accelerators']))}. "
            "Set one that exists, or add l40x to global.accelerators."
        ],
    ),
    "accelerator taken away": (
        {"accelerators": {"l40s": None}},
        [
            f"{M}.accelerator: l40s is not in global.accelerators. There are "
            f"{', '.join(sorted(set(DEFAULTS['accelerators']) - {'l40s'}))}. "
            "Set one that exists, or add l40s to global.accelerators."
        ],
    ),
    "team": (
        one(team="apeals"),
        [
            f"{M}.team: apeals is not in global.teams. There are appeals, claims. "
            "Set one that exists, or add apeals to global.teams."
        ],
    ),
    "profile": (
        one(profile="large"),
        [
            f"{M}.profile: large is not in global.modelDefaults.profiles. There are none. "
            "Set one that exists, or add large to global.modelDefaults.profiles."
        ],
    ),
    "image": (
        one(image="sglang"),
        [
            f"{M}.image: sglang is not in global.images. There are {IMAGES}. "
            "Set one that exists, or add sglang to global.images."
        ],
    ),
    "accelerator's image": (
        {"accelerators": {"l4": {"image": "sglang"}}},
        [
            f"global.accelerators.l4.image: sglang is not in global.images. There are {IMAGES}. "
            "Set one that exists, or add sglang to global.images."
        ],
    ),
    "no accelerator and no length": (
        {"models": {"summary": None, "other": {"source": "s3://models/other/1.0/", "weightsGiB": 1}}},
        [f"global.models.other.{field}: {ABSENT}" for field in ("accelerator", "maxModelLen")],
    ),
    "cores of a device": (
        {"accelerators": {"inferentia1": {
            "resource": "aws.amazon.com/neuron", "memoryGiB": 8, "image": "vllm-neuron", "instanceFamilies": ["inf1"],
            "cpu": "1", "memory": "2Gi"}}},
        [
            "global.accelerators.inferentia1.coresPerDevice: absent, while the resource is aws.amazon.com/neuron. "
            "Neuron counts cores, and pods may have to ask for whole devices. Set the cores of one device, such as 2."
        ],
    ),
    "an accelerator and an image of their own": (
        {"accelerators": {"b200": {"resource": "nvidia.com/gpu"}}, "images": {"sglang": {"tag": "v1"}},
         **one(accelerator="b200", image="sglang")},
        [
            f"global.{path}: absent. No default has an entry of that name to take it from. Set it."
            for path in (
                "accelerators.b200.memoryGiB", "accelerators.b200.image", "accelerators.b200.cpu",
                "accelerators.b200.memory", "images.sglang.repository", "images.sglang.version",
            )
        ],
    ),
    # Residency.
    "ARN": (bedrock(ARN, "anywhere"), [f"{M}.fallback.model: {ARN} {HIDDEN}"]),
    "prompt router": (
        bedrock("default-prompt-router/anthropic.claude:1", "anywhere"),
        [f"{M}.fallback.model: default-prompt-router/anthropic.claude:1 {HIDDEN}"],
    ),
    "unknown prefix": (bedrock("mars.amazon.nova", "anywhere"), [f"{M}.fallback.model: mars.amazon.nova {HIDDEN}"]),
    "empty prefix": (bedrock(".amazon.nova", "geography"), [f"{M}.fallback.model: .amazon.nova {HIDDEN}"]),
    "beyond cluster": (
        one(fallback=FALLBACK),
        [
            f"{M}.fallback.model: openai.gpt-oss-120b-1:0 reaches the region, beyond the residency cluster. "
            f"{FARTHER}. Set residency: region, or fallback: null."
        ],
    ),
    "beyond region": (
        bedrock("global.anthropic.claude", "region"),
        [
            f"{M}.fallback.model: global.anthropic.claude reaches anywhere, beyond the residency region. "
            f"{FARTHER}. Set a bare foundation-model id, or residency: anywhere."
        ],
    ),
    "own geography beyond region": (
        {"residency": {"geography": "eu"}, **bedrock("eu.amazon.nova", "region")},
        [
            f"{M}.fallback.model: eu.amazon.nova reaches the geography, beyond the residency region. "
            f"{FARTHER}. Set a bare foundation-model id, or residency: geography."
        ],
    ),
    "beyond geography": (
        {"residency": {"geography": "eu"}, **bedrock("global.amazon.nova", "geography")},
        [
            f"{M}.fallback.model: global.amazon.nova reaches anywhere, beyond the residency geography. "
            f"{FARTHER}. Set a bare foundation-model id, or residency: anywhere."
        ],
    ),
    "other geography": (
        {"residency": {"geography": "eu"}, **bedrock("us.amazon.nova", "geography")},
        [
            f"{M}.fallback.model: us.amazon.nova reaches anywhere, beyond the residency geography. {FARTHER}, "
            "and us. stays in its geography only where global.residency.geography is us (it is eu). "
            "Set a bare foundation-model id, or residency: anywhere."
        ],
    ),
    "no geography": (
        bedrock("eu.amazon.nova", "geography"),
        [
            f"{M}.fallback.model: eu.amazon.nova reaches anywhere, beyond the residency geography. {FARTHER}, "
            "and eu. stays in its geography only where global.residency.geography is eu (it is empty). "
            "Set a bare foundation-model id, or global.residency.geography: eu, or residency: anywhere."
        ],
    ),
    "a profile's prefix among the providers": (
        {"bedrock": {"providers": ["us", "amazon"]}, **bedrock("us.amazon.nova", "region")},
        [
            f"{M}.fallback.model: us.amazon.nova reaches anywhere, beyond the residency region. {FARTHER}, "
            "and us. stays in its geography only where global.residency.geography is us (it is empty). "
            "Set a bare foundation-model id, or residency: anywhere."
        ],
    ),
    "shared with the provider": (
        bedrock("amazon.nova", "region", retention="provider_data_share"),
        [
            f"{M}.fallback.retention: provider_data_share hands prompts to the model's provider, beyond the residency "
            f"region. {SHARED}: anywhere."
        ],
    ),
    "fallback of something else than chat": (
        one(residency="region", fallback=FALLBACK, api=["embeddings"]),
        [
            f"{M}.api: embeddings with a fallback. Only chat completions fall back. "
            "Set chat in api, or fallback: null."
        ],
    ),
    "budget without a fallback": (
        one(firstTokenBudget="2s"),
        [
            f"{M}.firstTokenBudget: 2s without a fallback. A stream that misses its budget needs somewhere else to go. "
            "Set a fallback, or take firstTokenBudget out."
        ],
    ),
    # Around the catalogue.
    "no Region": (
        {"aws": {"region": ""}},
        [
            "global.aws.region: empty, while S3 or Amazon Bedrock is called for summary. "
            "Nothing guesses where they are called. Set the Region, such as eu-central-1."
        ],
    ),
    "no Region for Bedrock": (
        {"aws": {"region": ""}, **one(source="file:///models/summary/v7/", residency="region", fallback=FALLBACK)},
        [
            "global.aws.region: empty, while S3 or Amazon Bedrock is called for summary. "
            "Nothing guesses where they are called. Set the Region, such as eu-central-1."
        ],
    ),
    "no S3 addresses": (
        {"network": {"s3Cidrs": []}},
        [f"global.network.s3Cidrs: empty, while summary reads its weights from S3. {DENY}"],
    ),
    "no Bedrock addresses": (
        {"network": {"bedrockCidrs": []}, **one(residency="region", fallback=FALLBACK)},
        [f"global.network.bedrockCidrs: empty, while summary falls back to Amazon Bedrock. {DENY}"],
    ),
    "every address": (
        {"network": {"s3Cidrs": ["0.0.0.0/0"], "bedrockCidrs": ["::/0"], "albSubnetCidrs": ["0.0.0.0/0"]}},
        [
            f"global.network.albSubnetCidrs: 0.0.0.0/0 {ANY}",
            f"global.network.bedrockCidrs: ::/0 {ANY}",
            f"global.network.s3Cidrs: 0.0.0.0/0 {ANY}",
        ],
    ),
    "half of every address": (
        {"network": {"s3Cidrs": ["0.0.0.0/1", "128.0.0.0/1"]}},
        [f"global.network.s3Cidrs: 0.0.0.0/1 {ANY}", f"global.network.s3Cidrs: 128.0.0.0/1 {ANY}"],
    ),
    "tag latest": (
        {"images": {"envoy": {"tag": "latest"}}},
        [
            "global.images.envoy.tag: latest moves. A restart could bring another image than the one that was tested. "
            "Set the tag of a version."
        ],
    ),
    "no digest": (
        {"requireDigest": True},
        [
            "global.images.vllm.digest: null, while global.requireDigest is true. "
            f"The registry may move the tag {DEFAULTS['images']['vllm']['tag']}. Set {DIGEST}."
        ],
    ),
    # The entry itself.
    "replicas": (
        one(replicas={"min": 3, "max": 2}),
        [f"{M}.replicas: min 3 is above max 2. No number of replicas is both. Set max: 3 or more, or min: 2 or less."],
    ),
    "one served name twice": (
        {"models": {"other": {**SUMMARY, "servedNames": ["big"]}, "summary": {"servedNames": ["big"]}}},
        [f"{M}.servedNames: big is served by global.models.other already. {OTHER_NAME}"],
    ),
    "another's key": (
        {"models": {"other": {**SUMMARY, "servedNames": ["summary"]}}},
        [f"global.models.other.servedNames: summary is served by global.models.summary already. {OTHER_NAME}"],
    ),
    "own key": (
        one(servedNames=["summary"]),
        [f"{M}.servedNames: summary is served by this entry already. {OTHER_NAME}"],
    ),
    "the router's name": (
        {"models": {"router": SUMMARY}},
        [
            "global.models.router: router is the router's own name. The engine's Service and the router's would be "
            "one object. Set another name for the model; clients may keep this one by servedNames: [router]."
        ],
    ),
    # Capacity.
    "too large, more accelerators help": (
        one(weightsGiB=131.4, tensorParallelSize=2),
        [
            f"{M}: weights 131.4 + overhead 4.0 + one sequence of 16384 tokens 2.0 = 137.4 GiB do not fit 80.5 GiB "
            "(44.7 GiB x 2 l40s x 0.9). Set tensorParallelSize: 4, or an accelerator with more memory."
        ],
    ),
    "too long, a shorter sequence helps": (
        one(maxModelLen=1048576),
        [
            f"{M}: weights 15.3 + overhead 2.0 + one sequence of 1048576 tokens 128.0 = 145.3 GiB do not fit 40.2 GiB "
            "(44.7 GiB x 1 l40s x 0.9). "
            "Set tensorParallelSize: 4, or maxModelLen: 187842 or less, or an accelerator with more memory."
        ],
    ),
    "too large for any number": (
        one(overheadGiB=41),
        [
            f"{M}: weights 15.3 + overhead 41.0 + one sequence of 16384 tokens 2.0 = 58.3 GiB do not fit 40.2 GiB "
            "(44.7 GiB x 1 l40s x 0.9). Set an accelerator with more memory."
        ],
    ),
    "Neuron counts cores": (
        one(accelerator="trainium2", tensorParallelSize=1, weightsGiB=30),
        [
            f"{M}: weights 30.0 + overhead 2.0 + one sequence of 16384 tokens 2.0 = 34.0 GiB do not fit 21.6 GiB "
            "(24 GiB x 1 trainium2 x 0.9). Set tensorParallelSize: 2, or an accelerator with more memory."
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refusal(chart: pathlib.Path, case: str) -> None:
    overlay, expected = CASES[case]
    assert refusals(chart, overlay) == expected


@pytest.mark.parametrize(
    "overlay",
    [
        {},
        {"models": {"summary": None}},
        # A disabled entry is not there, however wrong it is.
        one(enabled=False, source="s3://models/latest/", accelerator="none"),
        # Farther than needed is no contradiction, and needs no fallback.
        one(residency="anywhere"),
        bedrock("openai.gpt-oss-120b-1:0", "region"),
        bedrock("global.anthropic.claude", "anywhere", retention="provider_data_share"),
        {"residency": {"geography": "eu"}, **bedrock("eu.amazon.nova", "geography")},
        bedrock("eu.amazon.nova", "anywhere"),
        one(source="file:///opt/models/1.2.0/"),
        {"aws": {"region": ""}, "network": {"s3Cidrs": []}, **one(source="file:///models/summary/v7/")},
        {"network": {"policies": False, "s3Cidrs": [], "bedrockCidrs": []}},
        {"requireDigest": True, "images": {"vllm": {"digest": f"sha256:{64 * '0'}"}}},
        {"teams": {"gone": None}, **one(team="claims")},
        # An overlay changes one field of a default.
        {"accelerators": {"l40s": {"memoryGiB": 44.5}}, "images": {"vllm": {"tag": "v1.2.3"}}},
        # Exactly what there is: 36.23 + 2 + 2 = 44.7 x 0.9.
        one(weightsGiB=36.23),
        {"modelDefaults": {"profiles": {"small": {"accelerator": "cpu"}}}, "models": {"m": {
            "profile": "small", "source": "s3://models/m/1/", "weightsGiB": 0.3, "maxModelLen": 2048}}},
    ],
    ids=lambda overlay: json.dumps(overlay)[:70],
)
def test_accepted(chart: pathlib.Path, overlay: dict[str, Any]) -> None:
    assert refusals(chart, overlay) == []


def test_every_refusal_is_told_at_once(chart: pathlib.Path) -> None:
    overlay = {"aws": {"region": ""}, **one(team="apeals", replicas={"min": 3, "max": 2}, weightsGiB=100)}
    paths = [line.split(": ")[0] for line in refusals(chart, overlay)]
    assert paths == ["global.aws.region", f"{M}.team", f"{M}.replicas", M]


def test_a_default_budget_means_the_models_that_fall_back(chart: pathlib.Path) -> None:
    overlay = {
        "modelDefaults": {"firstTokenBudget": "2s"},
        "models": {"other": {**SUMMARY, "residency": "region", "fallback": FALLBACK}},
    }
    budgets = {name: model.get("firstTokenBudget") for name, model in resolved(chart, overlay).items()}
    assert budgets == {"other": "2s", "summary": None}


@pytest.mark.parametrize("name", ["8b", "Summary", "false", "true", 41 * "a"])
def test_a_model_s_name_is_the_name_of_a_service(chart: pathlib.Path, name: str) -> None:
    """`false` is what YAML makes of an unquoted `n`, `no` or `off`."""
    # Of a name Helm's schema library tells the wrong path, so that alone is what the message can be held to.
    with pytest.raises(helm.HelmError, match=f"invalid propertyName '{name}'"):
        helm.template(chart, values={"global": {"models": {name: SUMMARY}}})


#: What an entry must say itself, because a default would be a guess, and what it may not say; the path that is told.
WRONG_FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "a fallback that says nothing of retention": (
        one(residency="region", fallback={"model": FALLBACK["model"]}),
        "at '/global/models/summary/fallback': missing property 'retention'",
    ),
    "a retention that is not the account's": (
        one(residency="region", fallback={**FALLBACK, "retention": "zero"}),
        "at '/global/models/summary/fallback/retention': value must be one of",
    ),
    "a residency that nobody knows": (
        one(residency="country"),
        "at '/global/models/summary/residency': value must be one of 'cluster', 'region', 'geography', 'anywhere'",
    ),
    "a misspelt residency": (
        one(residencey="region"),
        "at '/global/models/summary': additional properties 'residencey' not allowed",
    ),
    "a misspelt field of the defaults": (
        {"modelDefaults": {"residencey": "region"}},
        "at '/global/modelDefaults': additional properties 'residencey' not allowed",
    ),
}


@pytest.mark.parametrize("case", WRONG_FORMS)
def test_the_schema_refuses(chart: pathlib.Path, case: str) -> None:
    overlay, message = WRONG_FORMS[case]
    with pytest.raises(helm.HelmError, match="values don't meet the specifications of the schema") as refused:
        helm.template(chart, files=[chart.parent / "base.yaml"], values={"global": overlay})
    assert message in str(refused.value)


def test_a_model_stays_in_the_cluster_unless_its_entry_or_a_default_says_otherwise(chart: pathlib.Path) -> None:
    overlay = {
        "modelDefaults": {"profiles": {"wide": {"residency": "region", "fallback": FALLBACK}}},
        "models": {
            "wide": {**SUMMARY, "profile": "wide"},
            "kept": {**SUMMARY, "profile": "wide", "residency": "cluster", "fallback": None},
        },
    }
    models = resolved(chart, overlay)
    assert {name: (model["residency"], model.get("reach")) for name, model in models.items()} == {
        "summary": ("cluster", None),
        "wide": ("region", "region"),
        "kept": ("cluster", None),
    }


@pytest.mark.parametrize("installed", checkout.INSTALLABLE)
def test_every_chart_validates_the_catalogue(chart: pathlib.Path, installed: str) -> None:
    overlay = {"global": one(source="s3://models/summary/latest/", accelerator="l40x")}
    with pytest.raises(helm.HelmError) as refused:
        helm.template(installed, files=[chart.parent / "base.yaml"], values=overlay)
    text = str(refused.value)
    assert "values of the catalogue do not fit together:\n- global.models.summary.accelerator: l40x is not" in text
    assert "\n- global.models.summary.source: " in text


def notes(chart: pathlib.Path, overlay: dict[str, Any], *arguments: str) -> str:
    """What the umbrella says after an installation; a dry run of the client asks no cluster."""
    values = chart.parent / "overlay.json"
    values.write_text(json.dumps({"global": overlay, "router": {"auth": AUTH}}))
    umbrella = checkout.CHARTS / "inference-plane"
    text = helm.run(
        "install", "plane", str(umbrella), "--namespace", "inference", "--dry-run=client",
        "--values", str(chart.parent / "base.yaml"), "--values", str(values), *arguments,
    )  # fmt: skip
    return text.partition("\nNOTES:\n")[2]


def test_notes_say_what_each_model_may_do(chart: pathlib.Path) -> None:
    model = {
        **SUMMARY,
        "residency": "region",
        "fallback": FALLBACK,
        "replicas": {"min": 2, "max": 8},
        "servedNames": ["org/Summary"],
        "namespace": "engines",
        "kvBytesPerToken": 131072,
    }
    assert notes(chart, {"models": {"summary": model, "other": SUMMARY | {"residency": "anywhere"}}}).startswith(
        """\
Release plane of the inference plane, in namespace inference.

other v7
  engine    vllm, image vllm, in namespace inference
  runs on   1 x l40s a replica, 1 replica, interactive
  prompts   never leave the cluster, as there is no fallback (residency anywhere would allow one)
  fallback  none
  memory    19.3 of 40.2 GiB needed, 22.9 GiB for the KV cache
  at once   11 sequences a replica of 16384 tokens each (worst case), 45 of 4096 (typical: a quarter of maxModelLen)

summary v7 (also org/Summary)
  engine    vllm, image vllm, in namespace engines
  runs on   1 x l40s a replica, 2 to 8 replicas, interactive
  prompts   may be processed in the Region eu-central-1 (residency region)
  fallback  openai.gpt-oss-120b-1:0 on Amazon Bedrock in eu-central-1, data retention none
  memory    19.3 of 40.2 GiB needed, 22.9 GiB for the KV cache
  at once   11 sequences a replica of 16384 tokens each (worst case), 45 of 4096 (typical: a quarter of maxModelLen)

Risks
- No digest for the images curl, envoy, plane, vllm: a tag can move. Set global.images.NAME.digest, then global.requireDigest: true.
- One replica of other: a node's drain or loss interrupts it. Set replicas.min: 2.
- The KV cache of other is assumed at 131072 bytes a token. Set kvBytesPerToken to what scripts/fit --config config.json says.
- Prompts, answers and tokens cross the cluster's network in clear text (tls.mode none). Set global.tls.mode: certManager.

Token budgets: none, every team may use all that the engines give. Set global.teams.NAME.tokensPerMinute.

Next
  kubectl -n inference rollout status deployment/router
  kubectl -n inference rollout status deployment/other --timeout 30m
  kubectl -n engines rollout status deployment/summary --timeout 30m
  helm test plane -n inference
  kubectl -n inference port-forward service/router 8080:80 &
  curl http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \\
    -H "authorization: Bearer $TOKEN" \\
    -d '{"model": "other", "messages": [{"role": "user", "content": "Say hello."}]}'
"""
    )


@pytest.mark.parametrize(
    ("overlay", "risk"),
    [
        ({"models": {"summary": None}}, "No models yet: nothing is served. Add one to global.models."),
        (
            {"network": {"policies": False}},
            "NetworkPolicies are off: any pod may call the engines, and they may call anywhere. "
            "Set global.network.policies: true.",
        ),
        (
            {"identity": {"mode": "none"}},
            "Pods get no AWS credentials (identity none), while S3 or Amazon Bedrock is called for summary. "
            "Set global.identity.mode: podIdentity.",
        ),
        (
            bedrock("amazon.nova", "region", retention="default"),
            "Amazon Bedrock may keep prompts of summary (default). "
            "Set the account's data-retention mode to none, then retention: none.",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_notes_name_the_risk(chart: pathlib.Path, overlay: dict[str, Any], risk: str) -> None:
    assert f"\n- {risk}\n" in notes(chart, overlay)
    assert f"- {risk}" not in notes(chart, {})


def test_notes_name_a_router_that_asks_for_no_token(chart: pathlib.Path) -> None:
    risk = (
        "\n- Nobody is asked for a token (the router's auth.mode is none): whoever reaches the router is served. "
        "Set auth.mode: jwt.\n"
    )
    text = notes(chart, {}, "--set", "router.auth.mode=none")
    assert risk in text and "Bearer" not in text
    assert risk not in notes(chart, {})
    assert risk not in notes(chart, {}, "--set", "router.auth.mode=none,router.enabled=false")


def test_notes_of_a_safe_catalogue_name_no_risk(chart: pathlib.Path) -> None:
    digest = {"digest": f"sha256:{64 * '0'}"}
    overlay = {
        "images": {name: digest for name in DEFAULTS["images"]},
        "requireDigest": True,
        "tls": {"mode": "certManager", "certManager": {"issuerRef": {"name": "internal"}}},
        **one(replicas={"min": 2}, kvBytesPerToken=131072),
    }
    text = notes(chart, overlay)
    assert "\nNext\n" in text
    assert "Risks" not in text


def test_notes_name_every_image_that_pods_run_without_a_digest(chart: pathlib.Path) -> None:
    render = helm.template("inference-plane", files=[chart.parent / "base.yaml"], values={"router": {"auth": AUTH}})
    pods = [o["spec"]["template"]["spec"] if o["kind"] == "Deployment" else o["spec"]
            for o in render.objects if o["kind"] in ("Deployment", "Pod")]  # fmt: skip
    run = {c["image"] for pod in pods for c in [*pod["containers"], *pod.get("initContainers", [])]}
    names = {name for name, i in DEFAULTS["images"].items() if f"{i['repository']}:{i['tag']}" in run}
    assert len(names) == len(run)
    (line,) = [line for line in notes(chart, {}).splitlines() if line.startswith("- No digest for the images ")]
    assert names == set(line.removeprefix("- No digest for the images ").partition(":")[0].split(", "))


def test_notes_propose_a_chat_only_where_a_model_chats(chart: pathlib.Path) -> None:
    assert "curl http" not in notes(chart, one(api=["embeddings"]))
    assert "curl http" not in notes(chart, {}, "--set", "router.enabled=false")

"""The capacity check: its arithmetic, and that the charts and the tools do the same."""

from typing import Any

import pytest
import yaml

from inference_plane import checkout, fit, helm

DEFAULTS = yaml.safe_load((checkout.CHARTS / "plane-lib" / "values.yaml").read_text())["defaults"]


def entry(accelerator: str, weights: float, length: int, **fields: Any) -> dict[str, Any]:
    base = {"source": "s3://models/m/v1/", "accelerator": accelerator, "weightsGiB": weights, "maxModelLen": length}
    return base | fields


#: Entries of a catalogue by what they are about, with whether they fit.
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "one-l40s": (entry("l40s", 15.3, 16384), True),
    "exactly-full": (entry("l40s", 35.73, 16384), True),
    "a-hair-over": (entry("l40s", 35.7300001, 16384), False),
    "weights-alone-do-not-fit": (entry("l40s", 131.4, 16384, tensorParallelSize=2), False),
    "two-accelerators": (entry("l40s", 61.7, 32768, tensorParallelSize=2, kvBytesPerToken=196608), True),
    "too-long": (entry("l4", 15.3, 131072), False),
    # Above a million Go prints floats with an exponent.
    "a-million-tokens": (entry("h100", 15.3, 1048576, tensorParallelSize=8, kvBytesPerToken=131072), True),
    "ten-million-tokens": (entry("h100", 15.3, 10485760, tensorParallelSize=8), False),
    "odd-numbers": (
        entry("a100-40", 13.37, 12345, kvBytesPerToken=98765, gpuMemoryUtilization=0.87, overheadGiB=3.3),
        True,
    ),
    "no-overhead": (entry("a100-80", 70.1, 4096, overheadGiB=0), True),
    "bounded-by-sequences": (entry("h100", 1, 512, maxNumSeqs=8), True),
    "cores-of-a-device": (entry("inferentia2", 15.3, 4096, tensorParallelSize=2), True),
    "whole-devices": (entry("trainium2", 61.7, 8192, tensorParallelSize=6), True),
    "no-accelerator": (entry("cpu", 0.27, 2048, kvBytesPerToken=23040, overheadGiB=0.5), True),
    "from-a-profile": ({"source": "s3://models/m/v1/", "weightsGiB": 15.3, "profile": "long"}, True),
}
VALUES = {
    "global": {
        "aws": {"region": "eu-central-1"},
        "tls": {"mode": "none"},
        "network": {"s3Cidrs": ["10.0.0.0/16"]},
        "modelDefaults": {"overheadGiB": 2.5, "profiles": {"long": {"accelerator": "l40s", "maxModelLen": 65536}}},
        "models": {name: case for name, (case, _) in CASES.items()},
    }
}


@pytest.fixture(scope="module")
def charts_say(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the library's templates compute for each case: `fit`, `refusal` and `devices`."""
    folder = tmp_path_factory.mktemp("charts") / "fit"
    (folder / "charts").mkdir(parents=True)
    (folder / "charts" / "plane-lib").symlink_to(checkout.CHARTS / "plane-lib")
    metadata = yaml.safe_load((checkout.CHARTS / "router" / "Chart.yaml").read_text())
    (folder / "Chart.yaml").write_text(yaml.safe_dump(metadata | {"name": "fit", "description": "a test's"}))
    (folder / "templates").mkdir()
    (folder / "templates" / "fit.yaml").write_text(
        """\
kind: Fits
{{- range $name, $model := include "plane.models" . | fromJson }}
{{ $name }}:
  fit: {{ include "plane.fit" $model }}
  refusal: {{ include "plane.fitRefusal" $model | toJson }}
  devices: {{ int $model.devices }}
{{- end }}
"""
    )
    (document,) = helm.template(folder, values=VALUES).of_kind("Fits")
    return document


@pytest.fixture(scope="module")
def models() -> dict[str, dict[str, Any]]:
    return fit.resolve(VALUES, DEFAULTS)


@pytest.mark.parametrize("name", CASES)
def test_charts_and_tools_agree(
    charts_say: dict[str, dict[str, Any]], models: dict[str, dict[str, Any]], name: str
) -> None:
    ours, theirs = fit.fit(models[name]), charts_say[name]
    assert ours.spelled() == pytest.approx(theirs["fit"], rel=1e-12)
    assert (ours.worst_case_concurrency, ours.typical_concurrency, ours.fits) == (
        theirs["fit"]["worstCaseConcurrency"],
        theirs["fit"]["typicalConcurrency"],
        CASES[name][1],
    )
    assert fit.refusal(models[name]) == theirs["refusal"]
    assert models[name]["devices"] == theirs["devices"]


def test_numbers_of_one_model(models: dict[str, dict[str, Any]]) -> None:
    assert fit.fit(models["one-l40s"]) == fit.Fit(
        have_gib=40.23,
        weights_gib=15.3,
        overhead_gib=2.5,
        kv_gib_per_sequence=2.0,
        need_gib=19.8,
        kv_gib=22.43,
        worst_case_concurrency=11,
        typical_concurrency=44,
        fits=True,
    )


def test_a_proposed_size_or_length_fits_and_a_longer_one_does_not(models: dict[str, dict[str, Any]]) -> None:
    model = models["too-long"]
    text = fit.refusal(model)
    assert "Set tensorParallelSize: 2, or maxModelLen: 18964 or less" in text
    assert fit.fit(model | {"tensorParallelSize": 2}).fits
    assert fit.fit(model | {"maxModelLen": 18964}).fits
    assert not fit.fit(model | {"maxModelLen": 18965}).fits


def test_whole_devices_are_asked_for(models: dict[str, dict[str, Any]]) -> None:
    assert {name: models[name]["devices"] for name in ("whole-devices", "cores-of-a-device", "no-accelerator")} == {
        "whole-devices": 2,
        "cores-of-a-device": 2,
        "no-accelerator": 0,
    }


@pytest.mark.parametrize(
    ("catalogue", "message"),
    [
        ({"m": entry("l40x", 1, 1)}, "global.models.m.accelerator: l40x is not in global.accelerators. There are"),
        ({"m": entry("l4", 1, 1, profile="p")}, "global.models.m.profile: p is not in global.modelDefaults.profiles"),
        ({"m": {"source": "s3://b/m/v1/", "weightsGiB": 1}}, "global.models.m.accelerator: absent."),
    ],
)
def test_what_cannot_be_resolved(catalogue: dict[str, Any], message: str) -> None:
    with pytest.raises(fit.CatalogueError) as error:
        fit.resolve({"global": {"models": catalogue}}, DEFAULTS)
    assert str(error.value).startswith(message)


def test_disabled_and_removed_entries_are_not_there() -> None:
    catalogue = {"a": entry("l4", 1, 1, enabled=False), "b": None, "c": entry("l4", 1, 1)}
    assert list(fit.resolve({"global": {"models": catalogue}}, DEFAULTS)) == ["c"]


LLAMA_3_8B = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "torch_dtype": "bfloat16",
}


@pytest.mark.parametrize(
    ("config", "kv_cache_dtype", "expected"),
    [
        (LLAMA_3_8B, "auto", 131072),
        (LLAMA_3_8B, "fp8", 65536),
        (LLAMA_3_8B | {"torch_dtype": "float32"}, "auto", 131072),
        # A head size of its own, as Qwen3 has it.
        (LLAMA_3_8B | {"head_dim": 256}, "auto", 262144),
        # Without grouped queries each attention head has its own keys and values.
        ({k: v for k, v in LLAMA_3_8B.items() if k != "num_key_value_heads"}, "auto", 524288),
        ({"text_config": LLAMA_3_8B, "vision_config": {"num_hidden_layers": 24}}, "auto", 131072),
    ],
)
def test_kv_cache_from_a_config(config: dict[str, Any], kv_cache_dtype: str, expected: int) -> None:
    assert fit.kv_bytes_per_token(config, kv_cache_dtype)[0] == expected


@pytest.mark.parametrize(
    ("fields", "noted"),
    [
        ({}, False),
        ({"sliding_window": 4096}, True),
        ({"sliding_window": 4096, "use_sliding_window": False}, False),
        ({"layer_types": ["sliding_attention", "full_attention"]}, True),
        ({"layer_types": ["full_attention"]}, False),
    ],
)
def test_sliding_windows_are_noted_as_an_upper_bound(fields: dict[str, Any], noted: bool) -> None:
    number, notes = fit.kv_bytes_per_token(LLAMA_3_8B | fields)
    assert number == 131072
    assert any("upper bound" in note for note in notes) == noted


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, "kv_lora_rank: latent attention"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "layer_types: linear_attention"),
        ({"torch_dtype": "int3"}, "dtype: int3"),
        ({"num_hidden_layers": None}, "num_hidden_layers: absent"),
    ],
)
def test_what_one_number_cannot_say_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(fit.NotModelled, match=message):
        fit.kv_bytes_per_token(LLAMA_3_8B | fields)

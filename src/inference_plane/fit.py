"""Does a model fit its accelerators, and how many requests run at once? The arithmetic of plane-lib's `_fit.tpl`.

A model fits where weights, overhead and the KV cache of one sequence of `maxModelLen` fit the memory that vLLM may
use; vLLM itself refuses to start with a KV cache smaller than one such sequence. Numbers are decimal, as in Helm's
arithmetic, so that 44.7 x 0.9 is 40.23 on both sides of a boundary.
"""

import dataclasses
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from inference_plane import helm

GIB = 1 << 30
#: tensorParallelSize that a refusal may propose; vLLM wants a divisor of the attention heads, mostly powers of two.
_SIZES = (2, 4, 8, 16, 32, 64)
#: What the largest node brings of a resource, as plane.largestNode has it.
_LARGEST_NODE = {"nvidia.com/gpu": 8, "aws.amazon.com/neuroncore": 24, "aws.amazon.com/neuron": 16}
#: Bytes of one element of the KV cache by the model's dtype; vLLM's `--dtype auto` runs float32 models in 16 bits.
_ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 2}


class NotModelled(Exception):
    """The KV cache of this architecture is not one number of bytes a token; the message says why and what to do."""


class CatalogueError(Exception):
    """An entry lacks what the check needs, or names what does not exist; the message says what to set."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """Memory over all accelerators of one replica, in GiB; concurrency in sequences, never above `maxNumSeqs`."""

    have_gib: float
    weights_gib: float
    overhead_gib: float
    kv_gib_per_sequence: float
    """One sequence of `maxModelLen` tokens."""
    need_gib: float
    kv_gib: float
    """What weights and overhead leave for the KV cache."""
    worst_case_concurrency: int
    """Where each sequence has `maxModelLen` tokens."""
    typical_concurrency: int
    """Where each sequence has a quarter of `maxModelLen`."""
    fits: bool

    def spelled(self) -> dict[str, Any]:
        """The fields as the charts spell them: `have_gib` is `haveGiB`."""
        words = ((name.split("_"), value) for name, value in dataclasses.asdict(self).items())
        return {
            first + "".join("GiB" if word == "gib" else word.title() for word in rest): value
            for (first, *rest), value in words
        }


def fit(model: Mapping[str, Any]) -> Fit:
    """The capacity of one resolved entry of the catalogue (`resolve`). On Neuron all sizes count cores."""
    size = model["tensorParallelSize"]
    weights = _decimal(model["weightsGiB"])
    have = _decimal(model["hardware"]["memoryGiB"]) * size * _decimal(model["gpuMemoryUtilization"])
    overhead = _decimal(model["overheadGiB"]) * size
    sequence = Decimal(model["maxModelLen"] * model["kvBytesPerToken"]) / GIB
    need = weights + overhead + sequence
    kv = max(Decimal(0), have - weights - overhead)
    return Fit(
        have_gib=float(have),
        weights_gib=float(weights),
        overhead_gib=float(overhead),
        kv_gib_per_sequence=float(sequence),
        need_gib=float(need),
        kv_gib=float(kv),
        worst_case_concurrency=min(model["maxNumSeqs"], int(kv / sequence)),
        typical_concurrency=min(model["maxNumSeqs"], int(4 * kv / sequence)),
        fits=need <= have,
    )


def refusal(model: Mapping[str, Any]) -> str:
    """Why a resolved entry does not fit and what to set, in the words of the charts; "" where it fits."""
    found = fit(model)
    if found.fits:
        return ""
    size = model["tensorParallelSize"]
    remedies = []
    larger = [
        s
        for s in _SIZES
        if s > size and _on_one_node(s, model["hardware"]) and fit({**model, "tensorParallelSize": s}).fits
    ]
    if larger:
        remedies.append(f"tensorParallelSize: {larger[0]}")
    length = int(_decimal(found.kv_gib) * GIB / model["kvBytesPerToken"])
    if length > 0:
        remedies.append(f"maxModelLen: {length} or less")
    remedies.append("an accelerator with more memory")
    return (
        f"weights {found.weights_gib:.1f} + overhead {found.overhead_gib:.1f} + one sequence of {model['maxModelLen']} "
        f"tokens {found.kv_gib_per_sequence:.1f} = {found.need_gib:.1f} GiB do not fit {found.have_gib:.1f} GiB "
        f"({model['hardware']['memoryGiB']:.15g} GiB x {size} {model['accelerator']} x "
        f"{model['gpuMemoryUtilization']:.15g}). Set {', or '.join(remedies)}."
    )


def resolve(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The fleets of a values file's enabled entries with their defaults, by name: each model's own and its canary's.

    Args:
        values: an environment's values.
        defaults: `defaults` of plane-lib's values, which the charts import to `global`.

    Each gets `hardware`, its accelerator's profile, `devices`, what one replica asks of the scheduler, and `path`,
    where it stands in the values.

    Raises:
        CatalogueError: an entry has no accelerator, no length, no weights, or names what does not exist.
    """
    everything = helm.merged(defaults, values.get("global") or {})
    model_defaults = dict(everything["modelDefaults"])
    profiles = model_defaults.pop("profiles", None) or {}
    models = {}
    for name, entry in sorted((everything.get("models") or {}).items()):
        if entry is None or entry.get("enabled") is False:
            continue
        path = f"global.models.{name}"
        profile = _named(profiles, entry.get("profile"), f"{path}.profile", "global.modelDefaults.profiles")
        model = helm.merged(helm.merged(model_defaults, profile), entry)
        for field in ("accelerator", "maxModelLen", "weightsGiB"):
            if not model.get(field):
                raise CatalogueError(f"{path}.{field}: absent. The capacity check needs it. Set it.")
        accelerators = everything["accelerators"]
        hardware = _named(accelerators, model["accelerator"], f"{path}.accelerator", "global.accelerators")
        devices = _devices(model["tensorParallelSize"], hardware)
        models[name] = model | {"hardware": hardware, "devices": devices, "path": path}
        if canary := entry.get("canary"):
            weights = canary.get("weightsGiB", model["weightsGiB"])
            models[f"{name}-canary"] = models[name] | {"weightsGiB": weights, "path": f"{path}.canary"}
    return models


def kv_bytes_per_token(config: Mapping[str, Any], kv_cache_dtype: str = "auto") -> tuple[int, list[str]]:
    """KV cache of one token over all layers, in bytes, from a Hugging Face `config.json`, and notes on the number.

    2 (keys and values) x layers x KV heads x head size x bytes of an element, as vLLM's full-attention KV cache. With
    a tensorParallelSize above the number of KV heads vLLM holds each head more than once, and the number grows alike.

    Args:
        config: the parsed file; of a multimodal model the language model's part counts.
        kv_cache_dtype: vLLM's `--kv-cache-dtype`, auto or fp8.

    Raises:
        NotModelled: latent (MLA), recurrent or hybrid attention, a dtype that is not known, or a field is absent.
    """
    text = config.get("text_config") or config
    if text.get("kv_lora_rank"):
        raise NotModelled(
            "kv_lora_rank: latent attention (MLA) caches kv_lora_rank + qk_rope_head_dim a layer, whole on every "
            "accelerator, which one number does not say. Set kvBytesPerToken from vLLM's own start-up lines."
        )
    layers = _field(text, "num_hidden_layers")
    kinds = text.get("layer_types") or []
    if strange := sorted(set(kinds) - {"full_attention", "sliding_attention", "chunked_attention"}):
        raise NotModelled(
            f"layer_types: {', '.join(strange)} caches no bytes a token. "
            "Set kvBytesPerToken from vLLM's own start-up lines."
        )
    heads = _field(text, "num_attention_heads")
    kv_heads = text.get("num_key_value_heads") or heads
    head_size = text.get("head_dim") or _field(text, "hidden_size") // heads
    notes = [f"KV heads: {kv_heads}; a tensorParallelSize above that multiplies kvBytesPerToken"]
    if set(kinds) - {"full_attention"} or (text.get("sliding_window") and text.get("use_sliding_window", True)):
        notes.append("sliding-window layers are counted as full attention: the number is an upper bound")
    dtype = text.get("dtype") or text.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype")
    if kv_cache_dtype == "auto" and dtype is None:
        notes.append("no dtype in the file: counted as 16 bits, what vLLM takes then")
    if dtype is not None and dtype not in _ELEMENT_BYTES:
        raise NotModelled(f"dtype: {dtype} is not one of {', '.join(_ELEMENT_BYTES)}. Set kvBytesPerToken by hand.")
    element = 1 if kv_cache_dtype == "fp8" else _ELEMENT_BYTES[dtype or "bfloat16"]
    return 2 * layers * kv_heads * head_size * element, notes


def _decimal(number: float) -> Decimal:
    return Decimal(str(number))


def _named(table: Mapping[str, Any], name: str | None, path: str, where: str) -> Mapping[str, Any]:
    """The table's entry of that name, an empty one without a name."""
    if name is None:
        return {}
    if (entry := table.get(name)) is None:
        have = ", ".join(sorted(key for key, value in table.items() if value is not None)) or "none"
        raise CatalogueError(f"{path}: {name} is not in {where}. There are {have}. Set one that exists.")
    return entry


def _devices(size: int, hardware: Mapping[str, Any]) -> int:
    """How many of the extended resource a pod asks for; whole Neuron devices hold several cores."""
    if not hardware["resource"]:
        return 0
    if hardware["resource"] == "aws.amazon.com/neuron":
        return math.ceil(size / hardware.get("coresPerDevice", 1))
    return size


def _on_one_node(size: int, hardware: Mapping[str, Any]) -> bool:
    """Whether the largest node of a resource has what a pod of this size asks for."""
    largest = _LARGEST_NODE.get(hardware["resource"])
    return largest is None or _devices(size, hardware) <= largest


def _field(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise NotModelled(f"{name}: absent from the file. Set kvBytesPerToken from vLLM's own start-up lines.")
    return value

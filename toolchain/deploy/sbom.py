"""Build a bundle's software bill of materials (SBOM) in CycloneDX 1.6: the model, its weights and data, and its libraries.

It has no time and no random serial number, so the same bundle has the same SBOM. https://cyclonedx.org/docs/1.6/json/
"""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from toolchain.edge.manifest import Manifest

FILE_NAME = "sbom.cdx.json"
PRODUCT_NAME = "edge-toolchain"
REQUIRED_LIBRARIES = ("numpy",)  # beside the runtime
OPTIONAL_LIBRARIES = ("pillow",)  # for image files
SHA256_HEX_DIGITS = 64  # published weights have a name in place of a digest


def build(manifest: Manifest) -> dict[str, Any]:
    """Return the SBOM as JSON-like data."""
    provenance = manifest.provenance
    libraries = [
        _describe_library(name, version, "required") for name, version in sorted(manifest.runtime_version.items())
    ]
    libraries += [_describe_library(name, provenance.versions.get(name, ""), "required") for name in REQUIRED_LIBRARIES]
    libraries += [_describe_library(name, provenance.versions.get(name, ""), "optional") for name in OPTIONAL_LIBRARIES]
    sources = [_describe_weights(manifest), _describe_images(manifest)]
    tools = [_describe_library(name, version, "") for name, version in sorted(provenance.versions.items())]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {
                "components": [_describe_library(PRODUCT_NAME, importlib.metadata.version(PRODUCT_NAME), ""), *tools]
            },
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "model",
                "name": f"{manifest.recipe}-{manifest.target}",
                "version": str(manifest.release),
                "components": [_describe_file(name, digest) for name, digest in sorted(_hash_files(manifest).items())],
                "modelCard": {
                    "modelParameters": {
                        "task": "image classification",
                        "architectureFamily": str(provenance.model["name"]),
                        "modelArchitecture": manifest.variant,
                        "datasets": [{"ref": "pictures"}],
                    },
                    "quantitativeAnalysis": {"performanceMetrics": _describe_accuracy(manifest)},
                },
            },
        },
        "components": [*libraries, *sources],
        "dependencies": [
            {"ref": "model", "dependsOn": [component["bom-ref"] for component in [*libraries, *sources]]},
            *({"ref": component["bom-ref"]} for component in [*libraries, *sources]),
        ],
    }


def _hash_files(manifest: Manifest) -> dict[str, str]:
    """Return the SHA-256 of every file that holds the model, in any of its forms."""
    digests = dict(manifest.model.sha256)
    for form in manifest.forms:
        digests |= form.sha256
    return digests


def _describe_file(name: str, digest: str) -> dict[str, Any]:
    return {"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": digest}]}


def _describe_library(name: str, version: str, scope: str) -> dict[str, Any]:
    """Return a component: a library with a `scope`, or with "" a tool that built the model."""
    component: dict[str, Any] = {"type": "library" if scope else "application", "name": name, "version": version}
    if scope:
        component |= {"scope": scope, "bom-ref": f"pypi/{name}", "purl": f"pkg:pypi/{name}@{version}"}
        component |= _describe_licence(_read_licence(name))
    return component


def _read_licence(name: str) -> str:
    """Return the licence that an installed package states; "" if it is not installed or does not state one in a line."""
    try:
        metadata: Mapping[str, str] = importlib.metadata.metadata(name)  # type: ignore[assignment]
    except importlib.metadata.PackageNotFoundError:
        return ""
    text = metadata["License-Expression"] or metadata["License"] or ""
    return text if "\n" not in text else ""


def _describe_weights(manifest: Manifest) -> dict[str, Any]:
    provenance = manifest.provenance
    has_digest = len(provenance.weights_sha256) == SHA256_HEX_DIGITS
    return {
        "type": "machine-learning-model", "bom-ref": "weights", "name": provenance.weights,
        **({"hashes": [{"alg": "SHA-256", "content": provenance.weights_sha256}]} if has_digest else {}),
        **_describe_licence(provenance.weights_licence),
    }  # fmt: skip


def _describe_images(manifest: Manifest) -> dict[str, Any]:
    provenance = manifest.provenance
    return {
        "type": "data", "bom-ref": "pictures", "name": f"images that {manifest.recipe} was fine-tuned on",
        "properties": [{"name": "digest", "value": provenance.data_digest}], **_describe_licence(provenance.data_licence),
    }  # fmt: skip


def _describe_licence(licence: str) -> dict[str, Any]:
    return {"licenses": [{"license": {"name": licence}}]} if licence else {}


def _describe_accuracy(manifest: Manifest) -> list[dict[str, Any]]:
    metrics = []
    for key, name in (("accuracy", "accuracy"), ("balanced", "balanced accuracy")):
        value = manifest.accuracy.get(key)
        if value is not None and not isinstance(value, str):
            bounds = {"lowerBound": f"{value.low:.4f}", "upperBound": f"{value.high:.4f}"}
            metrics.append({"type": name, "value": f"{value.estimate:.4f}", "confidenceInterval": bounds})
    return metrics

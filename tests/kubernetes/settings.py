"""The settings that a container of the manifests would read."""

import os
from pathlib import Path
from unittest.mock import patch

from consumer.settings import Settings, load
from tests.kubernetes.manifests import Manifests, Pod

SECRETS = {
    "conversation-database": {"CONSUMER_DATABASE__URL": "postgresql://app:secret@postgres/conversation\n"},
    "conversation-database-owner": {"CONSUMER_DATABASE__URL": "postgresql://owner:secret@postgres/conversation\n"},
    "kafka-cluster-ca-cert": {"ca.crt": "certificate", "ca.p12": "binary", "ca.password": "secret"},
}
"""What `docs/kubernetes.md` asks for. The operator of Strimzi makes those of the Kafka users."""


def secret(manifests: Manifests, name: str) -> dict[str, str]:
    """Its keys. Raises `KeyError` if nobody makes it."""
    made = {user: {"password": f"of {user}", "sasl.jaas.config": "..."} for user in manifests.of("KafkaUser")}
    return (SECRETS | made)[name]


def settings_of(manifests: Manifests, pod: Pod, directory: Path, **extra: str) -> Settings:
    """Read in an environment like the container's; `directory` takes the place of its root."""
    for name, files, mount_path in pod.secrets():
        keys = secret(manifests, name)
        mounted = {files[key]: keys[key] for key in files} if files else keys
        _mount(directory / mount_path.lstrip("/"), mounted)
    paths = {mount["mountPath"] for mount in pod.container["volumeMounts"]}
    variables = manifests.environment(pod) | extra
    for path in paths:
        variables = {name: value.replace(path, f"{directory}{path}") for name, value in variables.items()}
    with patch.dict(os.environ, variables, clear=True):
        return load()


def _mount(target: Path, files: dict[str, str]) -> None:
    """As the kubelet does: files behind a link to a hidden directory."""
    hidden = target / "..2026_11_25_10_00_00.1"
    hidden.mkdir(parents=True, exist_ok=True)
    if not (target / "..data").is_symlink():
        (target / "..data").symlink_to(hidden.name)
    for name, content in files.items():
        (hidden / name).write_text(content)
        (target / name).symlink_to(Path("..data") / name)

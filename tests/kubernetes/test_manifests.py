"""The manifests of `deploy/k8s`, overlay by overlay."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from consumer.commands.root import app
from consumer.errors import ConfigurationError
from consumer.kafka.client import STOP_SECONDS
from consumer.settings import variables
from tests.kubernetes.manifests import K8S, SERVICES, Manifests, render, selects
from tests.kubernetes.schemas import KUBERNETES_VERSIONS, Schemas
from tests.kubernetes.settings import SECRETS, secret, settings_of

DOCUMENT = K8S.parents[1] / "docs" / "kubernetes.md"


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_every_object_is_valid(manifests: Manifests, published: Schemas, version: str) -> None:
    errors = [error for thing in manifests.objects if (error := published.errors(thing, version))]

    assert not errors, "\n".join(errors)


def test_a_field_that_does_not_exist_is_an_error(prod: Manifests, published: Schemas) -> None:
    kinds = {thing["kind"]: thing for thing in prod.objects if "spec" in thing}

    for kind, thing in kinds.items():
        assert "replicaz" in published.errors(thing | {"spec": thing["spec"] | {"replicaz": 1}}, "1.37"), kind


def test_a_pod_reads_its_settings(manifests: Manifests, tmp_path: Path) -> None:
    for component, pod in manifests.pods().items():
        settings = settings_of(manifests, pod, tmp_path / component)

        role = "owner" if component == "migrate" else "app"
        assert f"//{role}:" in settings.database.url.get_secret_value(), component
        assert set(manifests.environment(pod)) <= {name for name, *_ in variables()} | {"CONSUMER_SECRETS_DIR"}


def test_only_the_migration_has_the_rights_of_the_owner(manifests: Manifests) -> None:
    owners = {component for component, pod in manifests.pods().items() for name, *_ in pod.secrets() if "owner" in name}

    assert owners == {"migrate"}


def test_a_service_in_the_namespace_does_not_become_a_setting(manifests: Manifests, tmp_path: Path) -> None:
    pods = manifests.pods()

    with pytest.raises(ConfigurationError, match="unknown setting CONSUMER_SERVICE_HOST"):
        settings_of(manifests, pods["consumer"], tmp_path, CONSUMER_SERVICE_HOST="10.0.0.1")
    assert {pod.spec["enableServiceLinks"] for pod in pods.values()} == {False}


def test_a_command_of_the_base_exists() -> None:
    for pod in render(K8S / "base").pods().values():
        done = CliRunner().invoke(app, [*pod.container["args"], "--help"])
        assert done.exit_code == 0, done.output


def test_secrets_and_config_maps_are_made_or_documented(manifests: Manifests) -> None:
    made_by_hand = set()
    for pod in manifests.pods().values():
        for source in pod.container.get("envFrom", []):
            assert source["configMapRef"]["name"] in manifests.of("ConfigMap")
        for name, files, _ in pod.secrets():
            assert set(files or ()) <= set(secret(manifests, name)), name
            made_by_hand |= {name} & set(SECRETS)

    text = DOCUMENT.read_text()
    assert made_by_hand >= {"conversation-database", "conversation-database-owner"}
    assert all(f"`{name}`" in text for name in made_by_hand)


def test_a_pod_has_time_to_drain(manifests: Manifests, tmp_path: Path) -> None:
    for component, pod in manifests.services().items():
        settings = settings_of(manifests, pod, tmp_path / component)
        drain_seconds = {
            "consumer": settings.worker.drain_seconds,
            "ticker": settings.ticker.drain_seconds,
            "outbox": settings.kafka.request_timeout_seconds,  # its turn waits for Kafka, once
        }[component]

        # After the drain: the last commit, leaving the group, closing the producer.
        needed = drain_seconds + 3 * STOP_SECONDS
        assert pod.spec["terminationGracePeriodSeconds"] > needed, component


def test_probes_ask_the_right_pages(manifests: Manifests) -> None:
    services = manifests.services()

    assert set(services) == set(SERVICES)
    for pod in services.values():
        probes = {name: pod.container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
        assert {name: probe["path"] for name, probe in probes.items()} == {
            "startupProbe": "/livez",
            "livenessProbe": "/livez",
            "readinessProbe": "/readyz",
        }
        assert {probe["port"] for probe in probes.values()} == {"http"}


def test_ports_are_those_that_are_served(manifests: Manifests, tmp_path: Path) -> None:
    for component, pod in manifests.services().items():
        settings = settings_of(manifests, pod, tmp_path / component)

        assert pod.container["ports"] == [{"name": "http", "containerPort": settings.http.port}]


def test_replicas_are_replaced_one_at_a_time(manifests: Manifests) -> None:
    deployment = manifests.of("Deployment")["conversation-consumer"]["spec"]

    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert deployment["minReadySeconds"] > 0


def test_a_node_is_drained_one_replica_at_a_time(manifests: Manifests) -> None:
    budgets = manifests.of("PodDisruptionBudget").values()

    for component, pod in manifests.services().items():
        (budget,) = [each["spec"] for each in budgets if selects(each["spec"]["selector"], pod.labels)]
        assert budget["maxUnavailable"] == 1, component
    assert len(budgets) == len(manifests.services())


def test_a_deployment_spreads_the_pods_that_it_owns(manifests: Manifests) -> None:
    for name, deployment in manifests.of("Deployment").items():
        spec, pod = deployment["spec"], manifests.pods()[name.removeprefix("conversation-")]
        owned = {component for component, each in manifests.pods().items() if selects(spec["selector"], each.labels)}

        assert owned == {pod.component}
        for constraint in pod.spec["topologySpreadConstraints"]:
            assert constraint["labelSelector"] == spec["selector"]


def test_the_network_is_closed_but_for_what_is_needed(manifests: Manifests, tmp_path: Path) -> None:
    (policy,) = [each["spec"] for each in manifests.of("NetworkPolicy").values()]
    consumer = manifests.pods()["consumer"]
    brokers = settings_of(manifests, consumer, tmp_path).kafka.bootstrap_servers

    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert all(selects(policy["podSelector"], pod.labels) for pod in manifests.pods().values())
    assert [_opening(rule, "from") for rule in policy["ingress"]] == [("monitoring", {8080})]
    assert [_opening(rule, "to") for rule in policy["egress"]] == [
        ("kube-system", {53}),
        ("kafka", {int(server.rpartition(":")[2]) for server in brokers.split(",")}),
        ("postgres", {5432}),
    ]


def _opening(rule: dict[str, list[dict[str, object]]], side: str) -> tuple[str, set[object]]:
    """The namespace and the ports of a rule, which must name both."""
    (peer,) = rule[side]
    namespace = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]  # type: ignore[index]
    return namespace, {port["port"] for port in rule["ports"]}


def test_a_pod_may_do_nothing_but_its_work(manifests: Manifests) -> None:
    accounts = manifests.of("ServiceAccount")

    for component, pod in manifests.pods().items():
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"] is True, component
        assert {context[name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {65532}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod.container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod.spec["automountServiceAccountToken"] is False
        assert accounts[pod.spec["serviceAccountName"]]["automountServiceAccountToken"] is False
        assert all(mount["readOnly"] for mount in pod.container["volumeMounts"])


def test_the_user_of_the_pods_is_that_of_the_image(manifests: Manifests) -> None:
    dockerfile = (K8S.parents[1] / "Dockerfile").read_text()

    users = {f"USER {pod.spec['securityContext']['runAsUser']}" for pod in manifests.pods().values()}

    assert all(user in dockerfile for user in users)


def test_memory_is_limited_and_cpu_is_not(manifests: Manifests) -> None:
    for pod in manifests.pods().values():
        resources = pod.container["resources"]

        assert set(resources["requests"]) == {"cpu", "memory"}
        assert set(resources["limits"]) == {"memory"}
    assert manifests.pods()["consumer"].container["resources"]["limits"] == {"memory": "512Mi"}


def test_an_overlay_says_which_image_all_run(manifests: Manifests) -> None:
    (image,) = {pod.container["image"] for pod in manifests.pods().values()}

    name, _, tag = image.rpartition(":")
    assert name.endswith("conversation-consumer")
    assert tag not in ("", "latest")

"""What the components of `deploy/k8s` add: topics, users, autoscaling, monitoring."""

import shutil
from datetime import timedelta
from pathlib import Path

from consumer.commands.topics import PARTITIONS
from consumer.kafka.admin import HEADER_BYTES, RETENTION_SLACK
from tests.kubernetes.manifests import K8S, Manifests, Object, render, selects
from tests.kubernetes.prometheus_rule import PROMETHEUS_RULE, RULES, generated
from tests.kubernetes.settings import secret, settings_of


def test_no_replica_is_without_a_partition(manifests: Manifests, tmp_path: Path) -> None:
    topics = settings_of(manifests, manifests.pods()["consumer"], tmp_path).kafka.topics
    made = [topic["spec"]["partitions"] for name, topic in manifests.of("KafkaTopic").items() if name in topics]
    scaled = manifests.of("ScaledObject").get("conversation-consumer", {"spec": {}})["spec"]
    deployment = manifests.of("Deployment")["conversation-consumer"]["spec"]

    assert scaled.get("maxReplicaCount", deployment.get("replicas")) <= sum(made or [PARTITIONS])


def test_the_autoscaler_alone_sets_the_number_of_replicas(prod: Manifests) -> None:
    (scaled,) = [each["spec"] for each in prod.of("ScaledObject").values()]

    target = prod.of("Deployment")[scaled["scaleTargetRef"]["name"]]

    assert target["metadata"]["name"] == "conversation-consumer"
    assert "replicas" not in target["spec"]


def test_the_autoscaler_takes_few_large_steps(prod: Manifests) -> None:
    (scaled,) = [each["spec"] for each in prod.of("ScaledObject").values()]
    behavior = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]

    assert scaled["minReplicaCount"] >= 2
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= 1800
    for direction in behavior.values():
        (policy,) = direction["policies"]
        assert policy["type"] == "Percent"
        assert policy["periodSeconds"] >= 300


def test_the_autoscaler_looks_at_the_lag_of_the_group(prod: Manifests, tmp_path: Path) -> None:
    kafka = settings_of(prod, prod.pods()["consumer"], tmp_path).kafka
    (scaled,) = [each["spec"] for each in prod.of("ScaledObject").values()]
    (trigger,) = scaled["triggers"]

    facts = trigger["metadata"]

    assert facts["bootstrapServers"] == kafka.bootstrap_servers
    assert facts["consumerGroup"] == kafka.group_id
    assert (facts["topic"],) == kafka.topics
    assert facts["sasl"].replace("_", "") == kafka.sasl_mechanism.replace("-", "").lower()


def test_the_autoscaler_logs_in_as_a_user_that_may_only_look(prod: Manifests) -> None:
    (scaled,) = [each["spec"] for each in prod.of("ScaledObject").values()]
    login = prod.of("TriggerAuthentication")[scaled["triggers"][0]["authenticationRef"]["name"]]["spec"]

    (name,) = login["configMapTargetRef"]
    user = prod.of("ConfigMap")[name["name"]]["data"][name["key"]]

    assert all(each["key"] in secret(prod, each["name"]) for each in login["secretTargetRef"])
    assert {operation for acl in _acls(prod, user) for operation in acl["operations"]} == {"Describe"}


def test_topics_are_those_of_the_settings(prod: Manifests, tmp_path: Path) -> None:
    kafka = settings_of(prod, prod.pods()["consumer"], tmp_path).kafka

    assert set(prod.of("KafkaTopic")) == {*kafka.topics, kafka.dead_letter_topic, kafka.transition_topic}
    assert {each["apiVersion"] for each in prod.objects if "strimzi" in each["apiVersion"]} == {"kafka.strimzi.io/v1"}


def test_a_dead_letter_fits_into_its_topic(prod: Manifests, tmp_path: Path) -> None:
    kafka = settings_of(prod, prod.pods()["consumer"], tmp_path).kafka

    limits = {name: each["spec"]["config"].get("max.message.bytes", 0) for name, each in prod.of("KafkaTopic").items()}

    assert all(limits[kafka.dead_letter_topic] >= limits[topic] + HEADER_BYTES > HEADER_BYTES for topic in kafka.topics)


def test_history_can_be_pruned(prod: Manifests, tmp_path: Path) -> None:
    settings = settings_of(prod, prod.pods()["prune"], tmp_path)

    for topic in settings.kafka.topics:
        config = prod.of("KafkaTopic")[topic]["spec"]["config"]
        retention = timedelta(milliseconds=config["retention.ms"] + config["segment.ms"]) + RETENTION_SLACK
        assert config["cleanup.policy"] == "delete"
        assert retention < settings.prune.horizon


def test_a_process_logs_in_to_kafka_as_a_user_that_there_is(prod: Manifests, tmp_path: Path) -> None:
    for component, pod in prod.pods().items():
        kafka = settings_of(prod, pod, tmp_path / component).kafka

        assert kafka.sasl_username == {
            "migrate": None,
            "prune": "conversation-consumer",
        }.get(component, f"conversation-{component}")
        if kafka.sasl_username and kafka.sasl_password:
            assert kafka.sasl_password.get_secret_value() == f"of {kafka.sasl_username}"
            assert prod.of("KafkaUser")[kafka.sasl_username]["spec"]["authentication"] == {"type": "scram-sha-512"}


def test_no_user_of_kafka_can_create_or_alter(prod: Manifests) -> None:
    used = {operation for user in prod.of("KafkaUser") for acl in _acls(prod, user) for operation in acl["operations"]}

    assert used == {"Read", "Write", "Describe", "DescribeConfigs"}


def _acls(manifests: Manifests, user: str) -> list[Object]:
    return list(manifests.of("KafkaUser")[user]["spec"]["authorization"]["acls"])


def test_prometheus_scrapes_every_pod_that_serves_metrics(prod: Manifests) -> None:
    (monitor,) = [each["spec"] for each in prod.of("PodMonitor").values()]
    (endpoint,) = monitor["podMetricsEndpoints"]

    scraped = {component for component, pod in prod.pods().items() if selects(monitor["selector"], pod.labels)}

    assert scraped >= set(prod.services())
    for pod in prod.services().values():
        assert endpoint["port"] in {port["name"] for port in pod.container["ports"]}
        assert pod.labels[monitor["jobLabel"]] == pod.component
    assert endpoint["path"] == "/metrics"


def test_the_rules_of_prometheus_are_those_of_the_cluster(prod: Manifests) -> None:
    assert RULES.exists(), "deploy/prometheus/rules.yaml is what the PrometheusRule is generated from"
    assert PROMETHEUS_RULE.read_text() == generated(), "run `make kubernetes-rules`"
    assert len(prod.of("PrometheusRule")) == 1


def test_the_outbox_can_be_left_out(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    overlay = tmp_path / "k8s" / "overlays" / "prod" / "kustomization.yaml"
    lines = overlay.read_text().splitlines()
    start = lines.index("  - name: conversation-outbox")
    without = [*lines[:start], *lines[start + 2 :]]
    overlay.write_text("\n".join(line for line in without if "outbox" not in line))

    manifests = render(overlay.parent)

    assert set(manifests.services()) == {"consumer", "ticker"}

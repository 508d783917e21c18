"""A broker that knows the users of the manifests and lets each do what the manifests grant, and nothing else."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest

from consumer.kafka.admin import admin
from consumer.settings import KafkaSettings
from tests.kubernetes.manifests import Manifests, Object
from tests.stack.kafka_broker import KafkaBroker
from tests.stack.process import free_port

PASSWORD = "secret"
LISTENERS = """
listeners=PLAINTEXT://127.0.0.1:{plain},SASL_PLAINTEXT://127.0.0.1:{sasl},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{plain},SASL_PLAINTEXT://127.0.0.1:{sasl}
controller.quorum.voters=1@127.0.0.1:{controller}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \\
required {users};
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
"""
RESOURCES = {"topic": 2, "group": 3}
OPERATIONS = {"Read": 3, "Write": 4, "Describe": 8, "DescribeConfigs": 10}
"""Codes of Kafka's protocol."""
LITERAL, ALLOW = 3, 3


@dataclass(frozen=True, slots=True)
class SecuredKafka:
    plain_port: int
    sasl_port: int

    @property
    def superuser(self) -> KafkaSettings:
        return KafkaSettings(bootstrap_servers=f"127.0.0.1:{self.plain_port}")

    def as_user(self, name: str) -> KafkaSettings:
        return KafkaSettings(
            bootstrap_servers=f"127.0.0.1:{self.sasl_port}",
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN",
            sasl_username=name,
            sasl_password=PASSWORD,
        )

    def environment(self, name: str) -> dict[str, str]:
        """The variables of `as_user`."""
        settings = json.loads(self.as_user(name).model_dump_json(exclude_unset=True))
        return {f"CONSUMER_KAFKA__{key.upper()}": value for key, value in settings.items()} | {
            "CONSUMER_KAFKA__SASL_PASSWORD": PASSWORD
        }

    async def set_up(self, manifests: Manifests) -> None:
        """Makes the topics, without replicas, and grants the rights of the manifests."""
        async with admin(self.superuser) as client:
            for name, topic in manifests.of("KafkaTopic").items():
                configs = topic["spec"]["config"] | {"min.insync.replicas": 1}
                texts = {key: str(value) for key, value in configs.items()}
                await client.create(name, topic["spec"]["partitions"], 1, texts)
        for name, user in manifests.of("KafkaUser").items():
            for acl in user["spec"]["authorization"]["acls"]:
                await self.grant(name, acl["resource"], *acl["operations"])

    async def grant(self, user: str, resource: Object, *operations: str) -> None:
        client = AIOKafkaAdminClient(bootstrap_servers=self.superuser.bootstrap_servers)
        await client.start()
        place = RESOURCES[resource["type"]], resource["name"], LITERAL
        for operation in operations:
            request = CreateAclsRequest(*place, f"User:{user}", "*", OPERATIONS[operation], ALLOW)
            answer = (await client._send_request(request)).to_object()
            assert not answer["creation_responses"][0]["error_code"], answer
        await client.close()


@contextmanager
def secured_kafka(*users: str) -> Iterator[SecuredKafka]:
    ports = SecuredKafka(free_port(), free_port())
    logins = " ".join(f'user_{user}="{PASSWORD}"' for user in users)
    listeners = LISTENERS.format(plain=ports.plain_port, sasl=ports.sasl_port, controller=free_port(), users=logins)
    broker = KafkaBroker(ports.plain_port, listeners)
    try:
        yield ports
    finally:
        broker.stop()

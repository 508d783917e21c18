"""ACLs of a broker, read from `kafka-acls` commands as the documents have them."""

import argparse
import shlex
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from aiokafka.errors import for_code
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest

from consumer.kafka.admin import admin
from consumer.settings import KafkaSettings

TOPIC, GROUP = 2, 3
LITERAL, ALLOW = 3, 3
OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8, "DescribeConfigs": 10}


class Acl(NamedTuple):
    principal: str
    operation: str
    kind: int
    name: str

    @property
    def fields(self) -> tuple[int, str, int, str, str, int, int]:
        """As Kafka's requests have them."""
        return (self.kind, self.name, LITERAL, self.principal, "*", OPERATIONS[self.operation], ALLOW)


def parse(command: str) -> Iterator[Acl]:
    """What one command adds."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--bootstrap-server", required=True)
    parser.add_argument("--add", action="store_true", required=True)
    parser.add_argument("--allow-principal", required=True)
    for name in ("--operation", "--topic", "--group"):
        parser.add_argument(name, action="append", default=[])
    found = parser.parse_args(shlex.split(command)[1:])
    resources = [*((TOPIC, name) for name in found.topic), *((GROUP, name) for name in found.group)]
    for operation, (kind, name) in product(found.operation, resources):
        yield Acl(found.allow_principal, operation, kind, name)


async def add(administrator: KafkaSettings, *acls: Acl) -> None:
    async with admin(administrator) as brokers:
        for acl in acls:
            answer = await brokers._client._send_request(CreateAclsRequest(*acl.fields))
            _check([code for code, _ in answer.creation_responses])


async def remove(administrator: KafkaSettings, acl: Acl) -> None:
    async with admin(administrator) as brokers:
        answer = await brokers._client._send_request(DeleteAclsRequest(*acl.fields))
        ((code, _, matching),) = answer.filter_responses
        _check([code])
        assert len(matching) == 1, acl


def _check(codes: list[int]) -> None:
    for code in codes:
        if code:
            raise for_code(code)

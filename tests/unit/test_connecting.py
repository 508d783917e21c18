"""Making a connection to PostgreSQL: its limits, and an address that cannot be one."""

import pytest

from consumer.errors import ConfigurationError
from consumer.postgres.client import Connector
from consumer.postgres.errors import connecting
from consumer.settings import DatabaseSettings


@pytest.mark.parametrize(
    ("setting", "parameter"),
    [
        ("statement_timeout_seconds", "statement_timeout"),
        ("lock_timeout_seconds", "lock_timeout"),
        ("idle_in_transaction_timeout_seconds", "idle_in_transaction_session_timeout"),
    ],
)
def test_a_limit_below_a_millisecond_is_one_all_the_same(setting: str, parameter: str) -> None:
    connector = Connector(DatabaseSettings.model_validate({setting: 0.0004}))

    assert connector._parameters[parameter] == "1"


@pytest.mark.parametrize("host", ["db..example", "x" * 64])
def test_a_host_name_that_cannot_be_one_is_a_setting_to_look_at(host: str) -> None:
    url = f"postgresql://app:canary@{host}/conversation"

    with (
        pytest.raises(ConfigurationError, match=r"host name .* check CONSUMER_DATABASE__URL") as caught,
        connecting(url),
    ):
        host.encode("idna")

    assert "canary" not in str(caught.value)

"""What the server's settings are advised to be, without a server."""

import pytest

from consumer.postgres.server_settings import NAMES, ServerSetting, advised

METHODS = ("pglz", "lz4", "zstd", "on", "off")
WELL = {
    "wal_compression": ServerSetting("wal_compression", "lz4", "lz4", METHODS),
    "max_wal_size": ServerSetting("max_wal_size", "8192", "8GB"),
    "checkpoint_timeout": ServerSetting("checkpoint_timeout", "900", "15min"),
}


def recommended(*changed: ServerSetting) -> dict[str, str]:
    """Of the settings that are not as recommended, the others being well."""
    settings = {**WELL, **{setting.name: setting for setting in changed}}
    return {one.setting.name: one.recommended for one in advised(settings.values()) if one.recommended}


def test_there_is_no_advice_where_all_is_as_recommended() -> None:
    assert recommended() == {}
    assert tuple(WELL) == NAMES


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        (ServerSetting("wal_compression", "off", "off", METHODS), "lz4"),
        (ServerSetting("wal_compression", "off", "off", ("pglz", "on", "off")), "pglz"),
        (ServerSetting("max_wal_size", "4095", "4095MB"), "4GB or more"),
        (ServerSetting("checkpoint_timeout", "300", "5min"), "15min or more"),
    ],
)
def test_what_is_not_as_recommended_comes_with_advice_and_its_reason(setting: ServerSetting, wanted: str) -> None:
    (one,) = (one for one in advised([*WELL.values(), setting]) if one.recommended)

    assert (one.setting, one.recommended) == (setting, wanted)
    assert one.why


@pytest.mark.parametrize("method", ["on", "pglz", "lz4", "zstd"])
def test_any_compression_is_well(method: str) -> None:
    assert recommended(ServerSetting("wal_compression", method, method, METHODS)) == {}


def test_a_setting_that_the_server_does_not_show_is_left_out() -> None:
    (one,) = advised([WELL["max_wal_size"]])

    assert one.setting == WELL["max_wal_size"]

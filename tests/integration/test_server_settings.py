"""The settings of a real server, as the role of the consumer reads them."""

from consumer.postgres.server_settings import NAMES, advised
from tests.conftest import opened
from tests.stack.database import execute
from tests.stack.services import Services


async def test_they_are_read_with_their_values_for_people_and_their_choices(stack: Services, database: str) -> None:
    name = database.rpartition("/")[2]
    await execute(stack.postgres, f"ALTER DATABASE {name} SET wal_compression = 'pglz'")

    async with opened(database) as store:
        settings = {setting.name: setting for setting in await store.server_settings()}

    compression, distance = settings["wal_compression"], settings["max_wal_size"]
    assert (compression.setting, compression.shown, {"off", "pglz"} <= set(compression.choices)) == (
        "pglz",
        "pglz",
        True,
    )
    assert (int(distance.setting) > 0, distance.shown[-2:] in {"MB", "GB"}, distance.choices) == (True, True, [])
    assert [one.setting.name for one in advised(settings.values())] == list(NAMES)

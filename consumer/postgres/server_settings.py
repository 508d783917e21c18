"""Settings of the server that pay where many conversations are active: what is recommended, and why.

Their figures are in docs/performance.md. They belong to the server's administrator, so nothing here sets any.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

READ_SETTINGS = """
    SELECT name, setting, current_setting(name), coalesce(enumvals, '{}')
    FROM pg_settings WHERE name = ANY($1::text[])"""


@dataclass(frozen=True, slots=True)
class ServerSetting:
    """A row of `pg_settings`. `setting` is in the unit of that view, `shown` as people write it.

    `choices`: the values that this build of the server knows, if it is a choice.
    """

    name: str
    setting: str
    shown: str
    choices: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Advised:
    """A setting of the server. `recommended` and `why` are empty where it is well."""

    setting: ServerSetting
    recommended: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class _AtLeast:
    """`least` is in the unit of `pg_settings`."""

    least: int
    recommended: str
    why: str

    def judged(self, setting: ServerSetting) -> Advised:
        if int(setting.setting) >= self.least:
            return Advised(setting)
        return Advised(setting, self.recommended, self.why)


class _Compression:
    why = "a row's page goes into the WAL whole when it is first written after a checkpoint"

    def judged(self, setting: ServerSetting) -> Advised:
        if setting.setting != "off":
            return Advised(setting)
        return Advised(setting, "lz4" if "lz4" in setting.choices else "pglz", self.why)


_OFTEN = "each checkpoint has every page that is written again go into the WAL whole once more"
_RECOMMENDED: dict[str, _AtLeast | _Compression] = {
    "wal_compression": _Compression(),
    "max_wal_size": _AtLeast(4096, "4GB or more", _OFTEN),
    "checkpoint_timeout": _AtLeast(900, "15min or more", _OFTEN),
}
NAMES = tuple(_RECOMMENDED)


def advised(settings: Iterable[ServerSetting]) -> list[Advised]:
    """Each of the settings of `NAMES`, in their order; those that the server does not show are left out."""
    by_name = {setting.name: setting for setting in settings}
    return [rule.judged(by_name[name]) for name, rule in _RECOMMENDED.items() if name in by_name]

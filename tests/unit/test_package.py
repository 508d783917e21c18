"""What ships: the names that programs use, and the contents of the wheel."""

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import consumer

ROOT = Path(__file__).parents[2]


def test_every_name_that_programs_use_is_there() -> None:
    assert all(getattr(consumer, name) for name in consumer.__all__)


def test_importing_the_package_imports_no_driver() -> None:
    script = (
        "import sys, consumer; sys.exit(bool({'asyncpg', 'sqlalchemy', 'aiokafka', 'pydantic'} & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_version_comes_from_one_place() -> None:
    assert version("conversation-consumer") == consumer.__version__


def test_the_wheel_has_what_runs_in_production_and_nothing_else(tmp_path: Path) -> None:
    for name in ("consumer", "schemas", "tests", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=tmp_path, check=True, capture_output=True
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())

    assert {name.split("/")[0] for name in files if "dist-info" not in name} == {"consumer", "schemas"}
    assert {"consumer/py.typed", "schemas/py.typed", "consumer/postgres/migrations/script.py.mako"} <= files
    assert "consumer/postgres/migrations/versions/0001_conversations.py" in files
    assert not {name for name in files if "planted" in name or "demo" in name}

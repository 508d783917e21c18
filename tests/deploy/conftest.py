"""What only a Docker engine can show. Ordinary runs deselect it; without an engine it fails."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import DockerException, ImageNotFound

ROOT = Path(__file__).parents[2]
IMAGE = "conversation-consumer:checked"
sizes = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    try:
        client = docker.from_env(timeout=120)
        client.ping()
    except DockerException as error:
        pytest.exit(f"no Docker engine answers: {error}", returncode=1)
    yield client
    client.close()


@pytest.fixture(scope="session")
def image(engine: Any, pytestconfig: pytest.Config) -> Iterator[Any]:
    """What `make image` builds."""
    made = subprocess.run(
        ["make", "image", f"IMAGE={IMAGE}"], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, (made.stdout + made.stderr)[-5000:]
    built = engine.images.get(IMAGE)
    total, base = built.attrs["Size"], size_of_base(engine, built.labels["org.opencontainers.image.base.name"])
    pytestconfig.stash[sizes] = f"image: {total / 1e6:.0f} MB, {(total - base) / 1e6:.0f} MB more than its base"
    yield built
    engine.images.remove(IMAGE, force=True)


def size_of_base(engine: Any, name: str) -> int:
    """BuildKit may have used the base without keeping it by its name."""
    try:
        base = engine.images.get(name)
    except ImageNotFound:
        base = engine.images.pull(name)
    return int(base.attrs["Size"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if printed := config.stash.get(sizes, ""):
        terminalreporter.write_line(printed)

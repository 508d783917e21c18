"""The old build, installed once."""

import os

import pytest

from tests.stack.process import DevstackError
from tests.upgrade.build import Build, find_commit, install


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A copy of the repository without history is named where it may be, and fails where the check must run."""
    revision = os.environ.get("OLD") or None
    try:
        find_commit(revision)
    except DevstackError as error:
        (pytest.fail if "CI" in os.environ else pytest.skip)(str(error))
    return install(revision, tmp_path_factory.mktemp("old"))

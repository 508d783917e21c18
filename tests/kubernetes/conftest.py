"""The overlays as they are rendered."""

import pytest

from tests.kubernetes.manifests import K8S, Manifests, render
from tests.kubernetes.schemas import Schemas, schemas


@pytest.fixture(scope="session", params=["dev", "prod"])
def manifests(request: pytest.FixtureRequest) -> Manifests:
    return render(K8S / "overlays" / request.param)


@pytest.fixture(scope="session")
def prod() -> Manifests:
    return render(K8S / "overlays" / "prod")


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Schemas:
    return schemas(tmp_path_factory.mktemp("strimzi"))

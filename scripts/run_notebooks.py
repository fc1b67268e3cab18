"""Run the tutorials of docs/tutorials from the top and store what they print and draw.

    python scripts/run_notebooks.py            # all of them
    python scripts/run_notebooks.py sharpness  # or some, by name

Each runs in an empty folder. Times, and names of the machine, are left out; pictures are PNG with
256 colours. Needs nbclient and ipykernel (``pip install ".[tutorials]"``).
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"

_COLOURS = 256
"""In a stored picture."""

_SECONDS = 1200
"""The longest that a cell may take."""


def names() -> list[str]:
    """The tutorials.

    Returns:
        Their names, without ``.ipynb``.
    """
    return sorted(path.stem for path in TUTORIALS.glob("*.ipynb"))


def executed(name: str) -> Any:
    """Run a tutorial.

    Args:
        name: Without ``.ipynb``.

    Returns:
        The notebook with its outputs, an ``nbformat.NotebookNode``.
    """
    import nbformat  # pyright: ignore[reportMissingImports]
    from nbclient import NotebookClient  # pyright: ignore[reportMissingImports]

    notebook = nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=_SECONDS, resources=where, record_timing=False)
        client.execute()
    for cell in notebook.cells:
        cell.metadata.clear()
        if "outputs" in cell:
            # warnings of other libraries, which name folders of the machine
            cell.outputs = [item for item in cell.outputs if item.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            output.get("metadata", {}).clear()
            if "image/png" in output.get("data", {}):
                # of a picture's text only its size would be left
                png = few_colours(base64.b64decode(output.data["image/png"]))
                output.data = {"image/png": base64.b64encode(png).decode()}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def few_colours(png: bytes) -> bytes:
    """A picture with few colours.

    Args:
        png: The picture.

    Returns:
        A smaller file.
    """
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    content = io.BytesIO()
    picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(content, "png", optimize=True)
    return content.getvalue()


def main() -> None:
    """Run those that are named, or all."""
    import nbformat  # pyright: ignore[reportMissingImports]

    for name in sys.argv[1:] or names():
        nbformat.write(executed(name), TUTORIALS / f"{name}.ipynb")
        print(f"written: docs/tutorials/{name}.ipynb")


if __name__ == "__main__":
    main()

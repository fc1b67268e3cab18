"""Pages of the site that no file in docs/ holds: a hook of mkdocs.yml.

One for each command, from the program itself; one for each notebook of docs/tutorials, with its
stored outputs; the bibliography, from docs/references.bib; changes, contributing and the records of
benchmarks, from the files beside docs/.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from option_tables import commands, table  # noqa: E402

_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Files of the repository's root to their pages."""

_MORE = {
    "spectrum": ["method", "scaling", "spectrum-file"],
    "train": ["training-history"],
    "levels": ["levels", "spectrum-file"],
    "density": ["density", "large-networks"],
    "simulate": ["loss-model"],
    "capacity": ["capacity"],
    "normalize": ["normalize"],
    "reproduce": ["papers"],
}
"""Command to the pages that explain it."""


def command_pages() -> dict[str, str]:
    """A page for each command.

    Returns:
        Path within docs/ to Markdown.
    """
    found = {}
    for name, command in commands().items():
        # what --help shows as paragraphs; lines within one are wrapped
        words = re.sub(r"\[/?\w+\]", "", command.help)
        parts = [f"# hessrmt {name}", words]
        example = (command.epilog or "").removeprefix("Example: ")
        if example:
            parts.append(f"```bash\n{example}\n```")
        if name in _MORE:
            links = [f"[{_title(page)}](../../{page}.md)" for page in _MORE[name]]
            parts.append("More: " + ", ".join(links) + ".")
        if any("--config" in parameter.opts for parameter in command.params):
            parts.append(
                "Settings can stand in a TOML file (`--config`), under the names of the options "
                "with `_` in place of `-`."
            )
        parts += ["## Options", table(command)]
        found[f"reference/commands/{name.replace(' ', '-')}.md"] = "\n\n".join(parts) + "\n"
    return found


def tutorial_pages() -> dict[str, str | bytes]:
    """A page for each notebook of docs/tutorials, as it was executed.

    Returns:
        Path within docs/ to Markdown, or to the picture of an output.
    """
    found: dict[str, str | bytes] = {}
    for path in sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")):
        parts = []
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
            for output in cell.get("outputs", []):
                data = output.get("data", {"text/plain": output.get("text", [])})
                if "image/png" in data:
                    name = f"{path.stem}-{len(found)}.png"
                    found[f"tutorials/{name}"] = base64.b64decode("".join(data["image/png"]))
                    parts.append(f"![Output of the cell above]({name})")
                elif "text/html" in data:
                    lines = "".join(data["text/html"]).splitlines()
                    parts.append("\n".join(line for line in lines if line.strip()))
                else:
                    shown = "".join(data["text/plain"]).rstrip()
                    parts.append(f"``` {{ .text .output }}\n{shown}\n```")
        parts.insert(1, f"*This page is a [notebook]({path.name}) with its outputs.*")
        found[f"tutorials/{path.stem}.md"] = "\n\n".join(parts) + "\n"
    return found


def bibliography() -> str:
    """The sources that pages and docstrings name by author and year.

    Returns:
        Markdown, an entry with an anchor for each.
    """
    from pybtex.database import parse_file  # pyright: ignore[reportMissingImports]

    lines = [
        "# Bibliography",
        "Sources as pages and docstrings name them, from `docs/references.bib`.",
    ]
    for key, entry in parse_file(str(ROOT / "docs" / "references.bib")).entries.items():
        text = {field: _plain(value) for field, value in entry.fields.items()}
        names = [_plain(str(person)) for person in entry.persons["author"]]
        made = ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]
        where = [text.get(field) for field in ("journal", "booktitle", "publisher", "institution")]
        where += [text.get("volume"), text.get("pages")]
        if "eprint" in text:
            where.append(f"[arXiv:{text['eprint']}](https://arxiv.org/abs/{text['eprint']})")
        if "doi" in text:
            where.append(f"[doi:{text['doi']}](https://doi.org/{text['doi']})")
        if "url" in text:
            where.append(f"<{text['url']}>")
        said = [f"*{text['title']}*"] if "title" in text else []
        said += [", ".join(filter(None, where))] if any(where) else []
        said += [text["note"]] if "note" in text else []
        lines.append(f"<a id='{key}'></a>**{made} {text['year']}**. " + ". ".join(said) + ".")
    return "\n\n".join(lines) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """Add the pages; mkdocs calls this once it has listed docs/.

    Args:
        files: All files of the site.
        config: The site's configuration.

    Returns:
        The files, with those that are made here.
    """
    from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]

    made = {**command_pages(), **tutorial_pages(), "reference/bibliography.md": bibliography()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    for name, page in _PAGES.items():
        if name != "README.md":
            files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    for record in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        path = record.relative_to(ROOT).as_posix()
        files.append(File.generated(config, path, abs_src_path=str(record)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:  # noqa: ARG001
    """Turn links between files of the repository into links between pages.

    Args:
        markdown: Source of a page.
        page: The page.
        config: The site's configuration.
        files: All files of the site.

    Returns:
        The source with its links as they are on the site.
    """
    here = page.file.src_uri
    home = "" if here in _PAGES.values() and here != "index.md" else posixpath.join("docs", here)
    folder = posixpath.dirname(home)

    def titled(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[1]))
        return f"[{_title(path[5:-3])}]({link[1]}" if path.startswith("docs/") else link[0]

    def moved(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[1]))
        inside = path.removeprefix("docs/") if path.startswith("docs/") else _PAGES.get(path, path)
        return f"]({posixpath.relpath(inside, posixpath.dirname(here) or '.')}{link[2] or ''})"

    markdown = re.sub(r"\[[\w/-]+\.md\]\(([\w./-]+\.md)", titled, markdown)
    return re.sub(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)", moved, markdown)


def on_post_template(output_content: str, template_name: str, **_: Any) -> str:
    """Let the page for what isn't there be read from a folder, too; mkdocs links it from the root.

    Args:
        output_content: Of a page that is made of no Markdown.
        template_name: Which one.
        **_: What else mkdocs gives.

    Returns:
        The same; of 404.html with links from its own place, and on a server from the root.
    """
    if template_name != "404.html":
        return output_content
    near = re.sub(r'((?:href|src|content)=")/(?=[^/"])', r"\1", output_content)
    near = near.replace('"base": "/"', '"base": "."')
    near = re.sub(r'"search": "/(?=[^/])', '"search": "', near)
    served = "location.protocol == 'file:' || document.write('<base href=\"/\">')"
    return near.replace("<head>", f"<head><script>{served}</script>", 1)


def on_page_content(html: str, **_: Any) -> str:
    """Turn the roles of docstrings, ``:class:`~hessrmt.Spectrum```, into links to the reference.

    Args:
        html: Of a page.
        **_: What else mkdocs gives.

    Returns:
        The same with links, which are found once all pages are there.
    """

    def linked(role: re.Match[str]) -> str:
        shown = role[2].rpartition(".")[2] if role[1] else role[2]
        text = f"<code>{shown}</code>"
        if not role[2].startswith("hessrmt."):
            return text
        return f'<autoref identifier="{role[2]}" optional>{text}</autoref>'

    return re.sub(r":(?:[a-z]+):<code>(~?)([\w.]+)</code>", linked, html)


def _plain(latex: str) -> str:
    """Text of a field without LaTeX's accents and braces."""
    from pybtex.richtext import Text  # pyright: ignore[reportMissingImports]

    return str(Text.from_latex(latex))


def _title(page: str) -> str:
    """First line of a page of docs/."""
    with (ROOT / "docs" / f"{page}.md").open(encoding="utf-8") as file:
        return file.readline().removeprefix("# ").strip()

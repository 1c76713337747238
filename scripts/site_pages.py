"""The site's pages that are no file in `docs/`, and its links: hooks for `mkdocs.yml`.

README, CONTRIBUTING and CHANGELOG become pages, and every room a page of the reference, made of its
docstrings. Links are written as they hold in the repository. Here one to a module leads into the
reference, and one to another file that is not on the site becomes its text alone.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
PACKAGES = ("mlic_jax", "weight_conversion")

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> None:
    """Puts the reference at the end of the navigation."""
    config.nav.append({"Reference": [{room: f"reference/{room}.md"} for room in rooms()]})


def on_files(files: Any, config: Any) -> None:
    """Adds the pages that are no file in `docs/`."""
    from mkdocs.structure.files import File

    made = {page: moved((ROOT / file).read_text(), ROOT) for file, page in PAGES.items()}
    for room, modules in rooms().items():
        parts = [f"# {room}", *(f"::: {module}" for module in modules)]
        made[f"reference/{room}.md"] = "\n\n".join(parts) + "\n"
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The links of a page that is a file in `docs/`."""
    return markdown if page.file.generated_by else moved(markdown, DOCS)


def rooms() -> dict[str, list[str]]:
    """The modules of every room; those at the top of a package are a room of their own."""
    found: dict[str, list[str]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[-1] != "__main__":
                room = ".".join(parts[: max(1, min(2, len(parts) - 1))])
                found.setdefault(room, []).append(module_name(path))
    return found


def module_name(path: Path) -> str:
    """The dotted name of a module of the repository."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def moved(markdown: str, folder: Path) -> str:
    """Text whose links are from a folder of the repository, with those of the site's root."""

    def link(match: re.Match) -> str:
        mark, text, target, anchor = match.groups(default="")
        if ":" in target:
            return match[0]
        path = (folder / target).resolve()
        if path.is_relative_to(DOCS):
            return f"{mark}[{text}]({path.relative_to(DOCS).as_posix()}{anchor})"
        name = path.relative_to(ROOT).as_posix()
        if name in PAGES:
            return f"[{text}]({PAGES[name]}{anchor})"
        if path.suffix == ".py" and name.split("/")[0] in PACKAGES:
            return f"[{text}][{module_name(path)}]"
        return text

    return _LINK.sub(link, markdown)

"""Pages with a marked place, `<!-- MARK -->` to `<!-- end -->`, which a command writes anew."""

from pathlib import Path

from mlic_jax.errors import UsageError
from mlic_jax.files.atomic import write_text

END = "<!-- end -->"


def split_page(page: Path, mark: str) -> tuple[str, str]:
    """A page up to where the marked place begins, and from its end on.

    Raises:
        UsageError: there is no such file, or not exactly one such place in it.
    """
    begin = f"<!-- {mark} -->\n"
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{page} cannot be read: {error.strerror}") from error
    before, _, rest = text.partition(begin)
    _, closed, after = rest.partition(END)
    if not closed or begin in rest:
        raise UsageError(f"{page} must have one line {begin.strip()} and a line {END} after it")
    return before + begin, END + after


def update_page(page: Path, mark: str, content: str) -> None:
    """Puts content, lines that end in a newline, into the marked place; raises as `split_page`."""
    before, after = split_page(page, mark)
    write_text(page, f"{before}{content}{after}")

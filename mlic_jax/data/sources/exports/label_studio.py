"""Label Studio: tasks with annotations, in full (JSON) or in short (JSON-MIN)."""

from collections.abc import Iterator, Mapping
from typing import Any

from mlic_jax.data.sources.columns import IMAGE
from mlic_jax.data.sources.exports.photo import Malformed, Parser, Photo, names


def _photos(content: Any) -> Iterator[Photo]:
    if not isinstance(content, list):
        raise Malformed("it must be a list of tasks")
    for task in content:
        if isinstance(task.get("data"), dict):
            yield _task(task)
        else:
            yield Photo(task.get("image"), list(_in_short(task)))


def _task(task: Mapping[str, Any]) -> Photo:
    """What people agree on is present, what only some of them say is unknown."""
    answers = [
        {
            name
            for result in annotation.get("result", [])
            for name in _chosen(result.get("value", {}))
        }
        for annotation in task.get("annotations") or task.get("completions") or []
        if not annotation.get("was_cancelled")
    ]
    present = set.intersection(*answers) if answers else set()
    unknown = set.union(*answers) - present if answers else set()
    data = task["data"]
    image = next((data[field] for field in IMAGE if field in data), None)
    return Photo(image, sorted(present), sorted(unknown))


def _chosen(value: Mapping[str, Any]) -> list[str]:
    """The names in a result: `choices`, or `rectanglelabels` and the like."""
    fields = (field for field in value if field == "choices" or field.endswith("labels"))
    return [name for field in fields for name in names(value[field], field)]


def _in_short(task: Mapping[str, Any]) -> Iterator[str]:
    for field, value in task.items():
        if field in ("choice", "choices", "tag", "label", "labels"):
            values = value if isinstance(value, list) else [value]
            for part in values:
                yield from _chosen(part) if isinstance(part, dict) else names(part, field)


PARSER = Parser(
    _photos,
    (b'"image"', b'"annotat'),
    "the JSON of Label Studio, a list of tasks",
    unlike=(b'"coordinates"', b'"categories"'),
    start=rb"\[",
)

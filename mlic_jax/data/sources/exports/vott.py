"""VoTT: an object of assets, each a photo with regions that have tags."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from mlic_jax.data.sources.exports.photo import Malformed, Parser, Photo, names

_NOT_VISITED = 0  # the state of a photo that nobody has looked at


def _photos(content: Any) -> Iterator[Photo]:
    if not isinstance(content, dict) or not isinstance(content.get("assets"), dict):
        raise Malformed("it must be an object of assets")
    for entry in content["assets"].values():
        asset, regions = entry["asset"], entry.get("regions", [])
        if asset.get("state") == _NOT_VISITED and not regions:
            continue
        tags = [names(region["tags"], "tags") for region in regions]
        yield Photo(unquote(asset["name"]), [name for part in tags for name in part])


PARSER = Parser(
    _photos,
    (b'"assets"', b'"regions"', b'"asset"'),
    "the JSON that VoTT exports, with photos that are not looked at yet left out",
    start=rb"\{",
)

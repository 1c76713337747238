"""Typed options: what a room takes of a configuration, made from it at the doors.

A configuration is for people, who set any option by its name. Behind the doors (training,
evaluation, prediction, the command line) everything takes a frozen dataclass, whose fields a type
checker and a reader know. Each stands in the room that it is of; the defaults are `config.py`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, get_type_hints

from ml_collections import ConfigDict

from mlic_jax.errors import UsageError


@dataclass(frozen=True)
class Options:
    """A section of a configuration, or what some room takes of one."""

    @classmethod
    def of(cls, section: ConfigDict | Mapping[str, Any]) -> Self:
        """The options of a section that have a field of their name; those of its sections likewise.

        Raises:
            UsageError: a field is not in the section.
        """
        if missing := [field.name for field in fields(cls) if field.name not in section]:
            raise UsageError(
                f"the configuration lacks {', '.join(missing)}: begin with "
                "mlic_jax.config.default_config()"
            )
        kinds = get_type_hints(cls)
        return cls(**{f.name: _frozen(section[f.name], kinds[f.name]) for f in fields(cls)})


def _frozen(value: Any, kind: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, Options):
        return kind.of(value)
    if isinstance(value, ConfigDict | Mapping):
        return dict(value)
    return tuple(value) if isinstance(value, list) else value

"""A config as the TOML text that `--config` reads again: what differs from the defaults, a dotted key a line.

Reads nothing, writes nothing.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import Any

from longtail.config import Config


def as_toml(config: Config, leave_out: Sequence[str] = ()) -> str:
    """The settings that differ from the defaults, without the sections `leave_out`; `load` of the text gives the same config but for these.

    Raises:
        ValueError: a setting is None where its default is not, which TOML cannot say.
    """
    defaults = dict(_flat(Config().model_dump()))
    lines = []
    for path, value in _flat(config.model_dump()):
        if path[0] in leave_out or (path in defaults and defaults[path] == value):
            continue
        if value is None and path not in defaults:
            continue  # an entry of a table, as it is without this key
        if value is None:
            raise ValueError(f"{'.'.join(path)} is None and its default is not: TOML has no word for it")
        lines.append(f"{'.'.join(map(_key, path))} = {_value(value)}")
    return "\n".join(lines) + "\n"


def as_overrides(raw: Mapping[str, Any], before: tuple[str, ...] = ()) -> list[str]:
    """Parsed TOML as the `a.b=value` settings that say the same, for a command whose machine has no such file."""
    found = []
    for name, value in raw.items():
        path = (*before, name)
        if isinstance(value, Mapping) and value and all(re.fullmatch(_WORD, inner) for inner in value):
            found += as_overrides(value, path)
        else:
            found.append(f"{'.'.join(path)}={_value(value)}")
    return found


_WORD = r"[A-Za-z0-9_-]+"


def _flat(section: Mapping[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, (*before, name))
        else:
            yield (*before, name), value


def _key(name: str) -> str:
    return name if re.fullmatch(_WORD, name) else json.dumps(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)} = {_value(inner)}" for name, inner in value.items()) + "}"
    return "[" + ", ".join(map(_value, value)) + "]"

"""Write what follows from code and data: the reference of settings, a JSON Schema of them, commands, published files.

    python docs/make_reference.py

`docs/configuration.md` gets the settings of `minigpt4/common/schema.py`, `docs/install.md` the commands of
`minigpt4/__main__.py`, `docs/minigpt4.md` the files of `minigpt4/configs/sources.yaml`. The JSON Schema
(`docs/configuration.schema.json`) lets editors complete keys, show their meanings and underline mistakes;
`docs/dataset_card.schema.json` points into it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import posixpath
import re
import sys
import types
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))  # so that a clone works without being installed

from minigpt4.__main__ import COMMANDS  # noqa: E402
from minigpt4.common import schema  # noqa: E402
from minigpt4.common.config import SWITCHES  # noqa: E402
from minigpt4.common.sources import sources  # noqa: E402

MARK = "<!-- From here on written by docs/make_reference.py: edit minigpt4/common/schema.py instead. -->"
REFERENCE = "\\$\\{.*\\}"
"""What refers to another value, such as `${paths.data_root}/birds`, in a regular expression of JSON Schema."""
TYPE_NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "text or list"}
JSON_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}


def meanings() -> dict[str, dict[str, str]]:
    """What stands below each field of the schema, and behind each member of an enumeration: class -> name -> text."""
    source = inspect.getsource(schema)
    lines = source.splitlines()
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        texts = found.setdefault(node.name, {})
        for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                described = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                texts[statement.target.id] = inspect.cleandoc(following.value.value) if described else ""
            elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                texts[statement.targets[0].id] = lines[statement.lineno - 1].partition("  # ")[2]
    return found


MEANINGS = meanings()


def parts(kind: Any) -> tuple[Any, bool]:
    """`kind` without None, and whether null is allowed."""
    if get_origin(kind) in (Union, types.UnionType):
        (inner,) = [part for part in get_args(kind) if part is not type(None)]
        return inner, True
    return kind, False


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field as YAML has it; `dataclasses.MISSING` for a section."""
    if field.default_factory is not dataclasses.MISSING:
        made = field.default_factory()
        return dataclasses.MISSING if dataclasses.is_dataclass(made) else made
    return field.default.value if isinstance(field.default, Enum) else field.default


def is_section(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) or (get_origin(kind) is dict and dataclasses.is_dataclass(get_args(kind)[1]))


# ---- Markdown


def reference() -> str:
    """The generated half of `docs/configuration.md`: a table for each section of the configuration."""
    blocks = [MARK, "## All keys"]
    for section, (key, *others) in sections(schema.Config, "").items():
        also = f" Also: {', '.join(f'`{other}`' for other in others)}." if others else ""
        rows = [row(section, field) for field in dataclasses.fields(section)]
        blocks += [f"### `{key}`", f"{inspect.getdoc(section)}{also}"]
        blocks += ["\n".join(["| key | type | default | meaning |", "| --- | --- | --- | --- |", *filter(None, rows)])]
    return "\n\n".join(blocks) + "\n"


def sections(section: type, prefix: str) -> dict[type, list[str]]:
    """The dataclasses of `section`'s sections and of theirs, each with the dotted keys that have it."""
    found: dict[type, list[str]] = {}
    hints = get_type_hints(section)
    for field in dataclasses.fields(section):
        kind, key = hints[field.name], f"{prefix}{field.name}"
        if not is_section(kind):
            continue
        if get_origin(kind) is dict:
            kind, key = get_args(kind)[1], f"{key}.NAME"
        found.setdefault(kind, []).append(key)
        for inner, keys in sections(kind, f"{key}.").items():
            found.setdefault(inner, []).extend(keys)
    return found


def row(section: type, field: dataclasses.Field[Any]) -> str:
    """A line of a section's table; empty for a section, which has a table of its own."""
    kind, optional = parts(get_type_hints(section)[field.name])
    meaning = MEANINGS[section.__name__][field.name].replace("\n", " ").replace("|", "\\|")
    if is_section(kind):
        return f"| `{field.name}` | section | | {meaning or inspect.getdoc(kind)} |" if not get_origin(kind) else ""
    default = default_of(field)
    shown = "required" if default == "???" else f"`{json.dumps(default)}`"
    return f"| `{field.name}` | {type_name(kind, field)}{' or null' if optional else ''} | {shown} | {meaning} |"


def type_name(kind: Any, field: dataclasses.Field[Any]) -> str:
    """A type and its range in words."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        remarks = MEANINGS[kind.__name__]
        return "; ".join(f"`{item.value}`{': ' * bool(remarks[item.name])}{remarks[item.name]}" for item in kind)
    if get_origin(kind) is list:
        entries = get_args(kind)[0]
        return "list of text" if entries is str else f"list of {TYPE_NAMES[entries]}s"
    if get_origin(kind) is dict:
        return "mapping"
    bounds = field.metadata.get("range")
    return TYPE_NAMES[kind] + (f", {bounds}" if bounds and str(bounds) else "")


# ---- JSON Schema


def json_schema() -> dict[str, Any]:
    """The configuration as a JSON Schema (draft 7, which editors' YAML servers know)."""
    known: dict[str, Any] = {}
    top = object_schema(schema.Config, "", known)
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "MiniGPT-4: a run", **top, "$defs": known}


def object_schema(section: type, prefix: str, known: dict[str, Any]) -> dict[str, Any]:
    """A dataclass as an object without further keys; the dataclasses inside go to `known`, by name."""
    hints = get_type_hints(section)
    properties = {}
    for field in dataclasses.fields(section):
        entry = value_schema(hints[field.name], field, f"{prefix}{field.name}", known)
        meaning = MEANINGS[section.__name__][field.name]
        default = default_of(field)
        entry |= {"description": meaning.replace("\n", " ")} if meaning else {}
        entry |= {"default": default} if default is not dataclasses.MISSING and default != "???" else {}
        properties[field.name] = entry
    return {
        "type": ["object", "null"],
        "description": inspect.getdoc(section),
        "properties": properties,
        "additionalProperties": False,
    }


def value_schema(kind: Any, field: dataclasses.Field[Any], key: str, known: dict[str, Any]) -> dict[str, Any]:
    """The values that a setting may have; a `${reference}` is always one."""
    kind, optional = parts(kind)
    if dataclasses.is_dataclass(kind):
        name = kind.__name__
        if name not in known:
            known[name] = {}  # reserved, so that the order is that of the schema
            known[name] = object_schema(kind, f"{key}.", known)
        return {"allOf": [{"$ref": f"#/$defs/{name}"}]}
    if get_origin(kind) is dict:
        inner = get_args(kind)[1]
        entries = value_schema(inner, field, f"{key}.NAME", known) if dataclasses.is_dataclass(inner) else True
        return {"type": ["object", "null"], "additionalProperties": entries}
    if get_origin(kind) is list:
        items = {"type": JSON_TYPES[get_args(kind)[0]]}
        return {"type": ["array", "null"] if optional else "array", "items": items}
    if kind is Any:
        return {}
    if issubclass(kind, Enum):
        values = [item.value for item in kind] + list(SWITCHES.get(key, {}))
        return {"anyOf": [{"enum": values}, {"type": "string", "pattern": REFERENCE}]}
    plain = {"type": [JSON_TYPES[kind], "null"] if optional else JSON_TYPES[kind]} | json_bounds(field)
    return plain if kind is str else {"anyOf": [plain, {"type": "string", "pattern": REFERENCE}]}


def json_bounds(field: dataclasses.Field[Any]) -> dict[str, float]:
    bounds = field.metadata.get("range", schema.Range())
    named = {
        "minimum": bounds.at_least,
        "exclusiveMinimum": bounds.above,
        "maximum": bounds.at_most,
        "exclusiveMaximum": bounds.below,
    }
    return {name: value for name, value in named.items() if value is not None}


def files() -> dict[Path, str]:
    """Every generated file with its text."""
    return {
        DOCS / "configuration.md": text_of("configuration.md").partition(MARK)[0] + reference(),
        DOCS / "install.md": with_table("install.md", "`minigpt4`", command_rows()),
        DOCS / "minigpt4.md": with_table("minigpt4.md", "file", source_rows()),
        DOCS / "configuration.schema.json": json.dumps(json_schema(), indent=1) + "\n",
    }


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def with_table(page: str, first_column: str, rows: list[str]) -> str:
    """A page with other rows below the heading of the table whose first column is `first_column`."""
    table = re.compile(rf"(^\| {re.escape(first_column)} \|.*\n\| ---.*\n)(?:\|.*\n)*", re.MULTILINE)
    return table.sub(lambda match: match[1] + "\n".join(rows) + "\n", text_of(page))


def command_rows() -> list[str]:
    return [f"| `{name}` | {command.what} |" for name, command in COMMANDS.items()]


def source_rows() -> list[str]:
    """Published files, where the cards look for them by default."""
    rows = []
    for source in sources():
        path = ("data/" if "/" in source.path else "weights/") + source.path
        if not source.get.startswith("make "):
            how = source.get.format(path=path, folder=posixpath.dirname(path))
            shown = re.sub(r"^((?:curl|hf|minigpt4) .*?)(  .*|, .*)?$", r"`\1`\2", how).replace("`  ", "` ")
            shown = shown if "`" in shown else re.sub(r"https://\S+", r"<\g<0>>", how)
            rows.append(f"| `{path}` | {source.size} | {shown} |")
    return rows


def main() -> None:
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

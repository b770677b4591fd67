"""Read typed configs from YAML and the command line, and report all mistakes in one message.

A section is a :class:`Config` declared beside the class that it configures; its ``build()`` makes the object. A config
file contains only values: no inheritance, no interpolation, no class paths.
"""

import difflib
import json
import re
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import pydantic
import yaml

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
"""Folder of the shipped configs; a config name without a folder is looked up here."""

MAX_BYTES = 1 << 20
_ConfigT = TypeVar("_ConfigT", bound="Config")


class ConfigError(ValueError):
    """Raised for mistakes in a config or a command line. The message says what is wrong, where, and how to fix it."""


class Config(pydantic.BaseModel):
    """A section of an experiment: immutable; unknown keys are errors, values are not converted, numbers are finite."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """Return the name of a generic section in the schema, without its parameters."""
        return cls.__name__


def json_schema(section: type[Config]) -> dict[str, Any]:
    """Return the JSON schema of a config, in which each section is defined under the name of its class."""
    from pydantic.json_schema import GenerateJsonSchema

    class ShortNames(GenerateJsonSchema):
        def normalize_name(self, name: str) -> str:
            return super().normalize_name(name.partition("[")[0])  # without the parameters of a generic section

    return section.model_json_schema(schema_generator=ShortNames)


class _Loader(yaml.SafeLoader):
    """A YAML loader for which 1e-3 is a number, `on` and `yes` are strings, and a repeated key is an error."""


_SCALARS = {
    "bool": (r"true|false|True|False", "tfTF"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN)",
        "-+.0123456789",
    ),
}
"""Pattern of each kind of value, and the characters that the value may begin with."""
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in _SCALARS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, (_spelling, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_spelling})$"), list(_first))


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise ConfigError(f"line {key_node.start_mark.line + 1}: a key must be a string, got {key!r}")
        if key in seen:
            raise ConfigError(f"line {key_node.start_mark.line + 1}: {key!r} appears twice")
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def _alias(loader: _Loader, node: yaml.Node | None, index: Any) -> yaml.Node:
    if loader.check_event(yaml.AliasEvent):
        raise ConfigError("YAML anchors and aliases (& and *) are not supported; write the value out")
    return yaml.SafeLoader.compose_node(loader, node, index)  # pyright: ignore[reportArgumentType, reportReturnType]


_Loader.compose_node = _alias  # pyright: ignore[reportAttributeAccessIssue]


def parse_yaml(text: str) -> Any:
    """Return the plain data in a YAML text; `1e-3` is a number. Never runs code. Raises ConfigError."""
    if len(text) > MAX_BYTES:
        raise ConfigError(f"the config has more than {MAX_BYTES:,} characters, the most that are allowed")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ConfigError("the config is nested too deeply") from error


def find(name: str | Path) -> Path:
    """Return the path of config file `name`, as a path or in `configs/`. Raises ConfigError with similar names."""
    path = Path(name)
    if path.is_file():
        return path
    if not path.is_absolute() and (CONFIGS / path).is_file():
        return CONFIGS / path
    known = sorted(found.relative_to(CONFIGS).as_posix() for found in CONFIGS.rglob("*.yaml"))
    known = [name for name in known if not name.startswith("accelerate/")]
    near = difflib.get_close_matches(path.as_posix(), known, n=3, cutoff=0.4)
    raise ConfigError(f"no config {path}; " + (f"did you mean {' or '.join(near)}?" if near else f"there are {known}"))


def load(kind: type[_ConfigT], path: str | Path, overrides: Sequence[str] = ()) -> _ConfigT:
    """Return the config at `path` (see :func:`find`) with `key.path=value` overrides applied, as an object of `kind`.

    Raises:
        ConfigError: the file or an override has mistakes; the message lists all of them, each with its key.
    """
    path = find(path)
    try:
        with path.open(encoding="utf-8") as file:
            values = parse_yaml(file.read(MAX_BYTES + 1))
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} cannot be run: expected `key: value` lines, got {type(values).__name__}")
    problems = [problem for override in overrides if (problem := _override(values, override))]
    if cut_off := [problem for problem in problems if "is cut off at a space" in problem]:
        problems = cut_off  # the others are its pieces
    try:
        config = parse(kind, values)
    except ConfigError as error:
        problems.append(str(error))
    else:
        if not problems:
            return config
    raise ConfigError(f"{path} cannot be run:\n" + "\n".join(f"  {line}" for p in problems for line in p.split("\n")))


def parse(kind: type[_ConfigT], values: dict[str, Any]) -> _ConfigT:
    """Return `values` as an object of `kind`. Lists may become tuples and strings may become paths; nothing else is
    converted.
    """

    def refuse(value: Any) -> str:
        raise ConfigError(f"{value!r} is not a valid config value")

    try:
        return kind.model_validate_json(json.dumps(values, default=refuse), strict=True)
    except pydantic.ValidationError as error:
        raise ConfigError("\n".join(_sentences(kind, values, error))) from error


def _override(values: dict[str, Any], text: str) -> str | None:
    """Apply one override `a.b.c=value`; return a description of the problem with it, or None."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        return f"{text!r} is not key=value, for example train.steps=100; put quotes around a value with spaces"
    try:
        parsed = parse_yaml(value) if value else ""
    except ConfigError as error:
        if value[0] in "{[" and value[-1] not in "}]":
            return f"{key}: {value} is cut off at a space; put quotes around all of it: {key}='{value} ...'"
        return f"{key}: {error}"
    *sections, last = key.split(".")
    here: Any = values
    for depth, section in enumerate(sections):
        if isinstance(here, dict):
            if here.get(section) is None:
                here[section] = {}
            here = here[section]
        elif isinstance(here, list) and section.isdigit() and int(section) < len(here):
            here = here[int(section)]
        else:
            return f"{key}: {'.'.join(sections[:depth])} has no key {section!r}"
    if isinstance(here, list) and last.isdigit() and int(last) < len(here):
        here[int(last)] = parsed
    elif isinstance(here, dict):
        here[last] = parsed
    else:
        return f"{key}: {'.'.join(sections) or 'the config'} is a single value without a key {last!r}"
    return None


def _sentences(kind: type[Config], values: Any, error: pydantic.ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        location = list(problem["loc"])
        key, section, value = _walk(kind, values, location)
        if problem["type"] == "extra_forbidden":
            known = sorted(section.model_fields) if section else []
            near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
            parent, dot, _ = key.rpartition(".")
            yield f"{key}: unknown key; " + (
                f"did you mean {parent}{dot}{near[0]}?" if near else f"known keys: {', '.join(known)}"
            )
        elif problem["type"] == "missing":
            yield f"{key}: this required key is missing"
        elif problem["type"] in ("union_tag_invalid", "literal_error"):
            context = problem.get("ctx", {})
            expected = re.findall(r"'([^']+)'", str(context.get("expected_tags") or context.get("expected") or ""))
            given = context.get("tag", value)
            near = difflib.get_close_matches(str(given), expected, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            name = f"{key}.name" if problem["type"] == "union_tag_invalid" else key
            yield f"{name}: {given!r} is not one of {', '.join(expected)}{hint}"
        elif problem["type"] == "union_tag_not_found":
            yield f"{key}.name: missing; `name` selects the kind of {key}"
        else:
            message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            lines = [line for line in message.split("\n") if line]
            if problem["type"] == "value_error":
                yield from (f"{key}: {line}" if key else line for line in lines)
            else:
                yield f"{key}: {message}, got {value!r}"


def _walk(kind: type[Config], values: Any, location: Iterable[Any]) -> tuple[str, type[Config] | None, Any]:
    """Follow a pydantic location, which includes union tags; return the key as in the file, the section, the value."""
    key: list[str] = []
    section: Any = kind
    owner: type[Config] | None = kind
    for part in location:
        members = _sections(section)
        if len(members) > 1 and (tagged := [m for m in members if part in _tags(m)]):
            section = owner = tagged[0]
            continue
        if not isinstance(part, int) and str(part).startswith(("function-", "tuple[", "list[", "dict[", "is-")):
            continue
        if isinstance(part, str) and not isinstance(values, dict):  # name of a member of a union
            continue
        if isinstance(values, dict) and part not in values and any(m.__name__ == part for m in members):
            continue
        key.append(str(part))
        if isinstance(values, dict):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        owner = members[0] if len(members) == 1 else owner
        known = owner.model_fields if owner is not None and len(members) == 1 else {}
        section = known[part].annotation if part in known else _item(section)
    return ".".join(key), owner, values


def _sections(annotation: Any) -> list[type[Config]]:
    """Return the Config classes that a value of this type may be."""
    if get_origin(annotation) is Annotated:
        return _sections(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [section for member in get_args(annotation) for section in _sections(member)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, Config) else []


def _item(annotation: Any) -> Any:
    """Return the type of the items of a container of this type."""
    if get_origin(annotation) is Annotated:
        return _item(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return next((item for member in get_args(annotation) if (item := _item(member)) is not None), None)
    return next((member for member in reversed(get_args(annotation)) if member is not Ellipsis), None)


def _tags(section: type[Config]) -> tuple[Any, ...]:
    field = section.model_fields.get("name")
    return get_args(field.annotation) if field else ()

"""The fields of a JSON Schema as lines that a person reads: name, kind, meaning and bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

Schema = Mapping[str, object]
_OF_REF = "#/components/schemas/"
_KINDS = {"integer": "number", "boolean": "true or false", "string": "text"}
_FORMATS = {"date-time": "time", "sending-time": "time", "mailbox": "address"}
_NULL: Schema = {"type": "null"}
_SAYS_KIND = {"type", "$ref"}
_WORDS = {"enum", "const"}


@dataclass(frozen=True, slots=True)
class Field:
    """One line."""

    name: str
    """Within others as `smtp.code` or `results[].id`."""
    required: bool
    kind: str
    about: str
    objects: tuple[str, ...]
    """Names of those of which it is one or a list: they are described apart."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads schemas that refer to others of one document."""

    schemas: Schema

    def fields(self, schema: Schema, prefix: str = "") -> Iterator[Field]:
        """Yield the fields of an object, and those of objects within it that have no name."""
        required = cast("list[str]", schema.get("required", []))
        for name, one in cast("Mapping[str, Schema]", schema.get("properties", {})).items():
            yield self.field(prefix + name, one, required=name in required)
            yield from self.fields(one, f"{prefix}{name}.")
            yield from self.fields(_item(one), f"{prefix}{name}[].")

    def field(self, name: str, schema: Schema, *, required: bool, about: str = "") -> Field:
        """Describe one field."""
        told = filter(None, [about, *self._told(schema)])
        return Field(name, required, self._kind(schema), "; ".join(told), tuple(self.objects(schema)))

    def objects(self, schema: Schema) -> Iterator[str]:
        """Yield the names of the objects that a schema refers to."""
        if "$ref" in schema:
            if "properties" in self.resolved(schema):
                yield str(schema["$ref"]).removeprefix(_OF_REF)
            return
        for one in _choices(schema):
            yield from self.objects(one)
        if item := _item(schema):
            yield from self.objects(item)

    def named(self, name: str) -> Schema:
        """Return the schema of that name."""
        return cast("Schema", self.schemas[name])

    def resolved(self, schema: Schema) -> Schema:
        """Return the schema that one refers to, or itself."""
        return self.named(str(schema["$ref"]).removeprefix(_OF_REF)) if "$ref" in schema else schema

    def _kind(self, schema: Schema) -> str:
        """Say in a word or two what a value is."""
        if "$ref" in schema:
            return next(self.objects(schema), "") or self._kind(self.resolved(schema))
        if choices := _choices(schema):
            return " or ".join(dict.fromkeys(map(self._kind, choices)))
        if item := _item(schema):
            return f"list of {self._kind(item)}"
        kinds = cast("str | list[str]", schema.get("type", "text" if _WORDS & schema.keys() else "any value"))
        names = [_KINDS.get(one, one) for one in ([kinds] if isinstance(kinds, str) else kinds) if one != "null"]
        return _FORMATS.get(str(schema.get("format")), " or ".join(names))

    def _told(self, schema: Schema) -> Iterator[str]:
        """Yield what is said of a value, and its bounds."""
        yield str(schema.get("description", ""))
        if "enum" in schema:
            yield ", ".join(f"`{one}`" for one in cast("list[str]", schema["enum"]))
        if "const" in schema:
            yield f"`{schema['const']}`"
        if "maximum" in schema:
            yield f"{schema.get('minimum', 0)} to {schema['maximum']}"
        if "maxLength" in schema:
            yield f"up to {schema['maxLength']:,} characters"
        if "maxItems" in schema:
            yield f"up to {schema['maxItems']:,}"
        if "default" in schema:
            yield f"`{schema['default']}` unless said"
        # What is said of a field holds for each choice, and for what it refers to.
        for one in [*_choices(schema), *([self.resolved(schema)] if "$ref" in schema else [])]:
            yield from self._told({**one, "description": ""})


def _choices(schema: Schema) -> list[Schema]:
    """Return what a value may be; that it may be null says only that it may be left out."""
    choices = cast("list[Schema]", schema.get("anyOf", []))
    return [inner for one in choices if one != _NULL for inner in _choices(one) or [one] if inner.keys() & _SAYS_KIND]


def _item(schema: Schema) -> Schema:
    return cast("Schema", schema.get("items", {}))

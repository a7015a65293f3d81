"""The JSON schema of recipes for editors, made of the settings that `recipe_keys` lists."""

from __future__ import annotations

from typing import Any, get_args

from zopeft.recipe.bench_schema import Job
from zopeft.recipe.keys import recipe_keys
from zopeft.recipe.load import CHOICES, SMALL
from zopeft.recipe.schema import SECTIONS

_TYPES: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "a number": {"type": "number"},
    "a whole number": {"type": "integer"},
    "true": {"const": True},
    "false": {"const": False},
    "null": {"type": "null"},
    "a list of names": {"type": "array", "items": {"type": "string"}},
    "a list of numbers": {"type": "array", "items": {"type": "number"}},
    "a mapping": {"type": "object"},
}


def recipe_schema() -> dict[str, Any]:
    """Returns the JSON schema of a recipe file, draft 2020-12."""
    sections = {name: _section(name) for name in SECTIONS}
    layer = {
        "type": "object",
        "description": "Settings for one of them alone.",
        "properties": {name: {"$ref": f"#/$defs/{name}"} for name in sections},
        "additionalProperties": False,
    }
    own = {name: {"$ref": f"#/$defs/{name}"} for name in sections}
    layers = {
        name: {"type": "object", "additionalProperties": {"$ref": "#/$defs/layer"}}
        for name in CHOICES
    }
    top = {"job": {"enum": list(get_args(Job))}, "about": {"type": "string"}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of zopeft",
        "type": "object",
        "properties": {**top, **own, **layers, SMALL: {"type": "object"}},
        "additionalProperties": False,
        "$defs": {**sections, "layer": layer},
    }


def _section(name: str) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = {}
    for key in recipe_keys(name):
        about = f"{key.about} ({key.range})" if key.range else key.about
        plain = key.to_dict()["default"]
        one = {**_type(key.type), "description": about, "default": plain}
        found.setdefault(key.key.partition(".")[2], []).append(one)
    return {
        "type": "object",
        "properties": {
            key: many[0] if len(many) == 1 else {"anyOf": many} for key, many in found.items()
        },
        "additionalProperties": False,
    }


def _type(words: str) -> dict[str, Any]:
    """Returns the schema of a type in words: ``a number or auto``."""
    parts = [_TYPES.get(word, {"const": word}) for word in words.split(" or ")]
    return parts[0] if len(parts) == 1 else {"anyOf": parts}

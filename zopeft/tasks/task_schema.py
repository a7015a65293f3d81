"""The keys of a task's YAML file, and their JSON schema for editors."""

from __future__ import annotations

from typing import Any

_TEXT = {"type": "string", "pattern": r"\S"}


def _text(about: str) -> dict[str, Any]:
    return {**_TEXT, "description": about}


PROPERTIES: dict[str, dict[str, Any]] = {
    "name": _text("What the task is called in runs and tables."),
    "prompt": _text("The text before the answer; {column} stands for a column's text, {{ for {."),
    "choices": {
        "description": "The options of a classification; {column} stands for a column's text.",
        "type": "array",
        "minItems": 2,
        "items": _TEXT,
    },
    "label": _text("The column with the right choice: 0, 1, ... or its text."),
    "label_by": {
        "description": "How labels are read where choices are numbers themselves.",
        "enum": ["text", "index"],
        "default": "text",
    },
    "answer": _text("The column with the right answer: a text, or a list of accepted ones."),
    "metric": {
        "description": "accuracy for choices; f1, or accuracy for exact match, for answers.",
        "enum": ["accuracy", "f1"],
    },
    "loss": {
        "description": "answer teaches the right text; choice teaches to prefer it.",
        "enum": ["answer", "choice"],
        "default": "answer",
    },
    "max_new_tokens": {
        "description": "Most tokens of a generated answer.",
        "type": "integer",
        "minimum": 1,
        "default": 50,
    },
    "stop": {
        "description": "What ends an answer, a newline by default; null: the end token alone.",
        "type": ["string", "null"],
        "minLength": 1,
        "default": "\n",
    },
    "hub": {
        "description": "Where the data is on the hub.",
        "anyOf": [
            _TEXT,
            {
                "type": "object",
                "properties": dict.fromkeys(("path", "config", "revision"), _TEXT),
                "required": ["path"],
                "additionalProperties": False,
            },
        ],
    },
    "data": _text("A folder or file with the data, seen from this file."),
    "splits": {
        "description": "Our names of splits to the data's: {validation: dev}.",
        "type": "object",
        "additionalProperties": {"type": "string"},
    },
    "about": _text("A line for lists."),
}
"""Each key of a task file, as a JSON schema."""
SCHEMA_LINE = "# yaml-language-server: $schema="
"""What the first line of a YAML file says to editors, before the schema's path."""


def task_schema() -> dict[str, Any]:
    """Returns the JSON schema of a task file, draft 2020-12."""
    choice = {"required": ["choices", "label"], "properties": {"metric": {"const": "accuracy"}}}
    answer = {"required": ["answer"], "properties": {"loss": {"const": "answer"}}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A task of zopeft",
        "description": "Rows of data, how they become a prompt, and what is the right answer.",
        "type": "object",
        "properties": PROPERTIES,
        "required": ["name", "prompt"],
        "additionalProperties": False,
        "oneOf": [
            {**choice, "not": {"anyOf": [{"required": ["answer"]}, {"required": ["stop"]}]}},
            {
                **answer,
                "not": {"anyOf": [{"required": [key]} for key in ("choices", "label", "label_by")]},
            },
        ],
    }

"""Conversation: lists of turns as people have them, read and checked before any template.

A turn is ``{"role": "user", "content": "..."}``; ShareGPT's ``{"from": "human", "value": "..."}``
means the same. Content may come as parts of text, ``[{"type": "text", "text": "..."}]``. What else
a turn has (``tool_calls``, ``name``, ``reasoning_content``) is handed on to the template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from zopeft.reading import has_half
from zopeft.tasks.task import Conversation, Example, RowError

ROLES = ("system", "developer", "user", "assistant", "tool")
"""The roles that a turn may have."""
_SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}
_SYSTEM = ("system", "developer")
Turn = dict[str, Any]


def conversation(
    value: Any,
    column: str,
    system: str | None = None,
    tools: Any = None,
    options: Mapping[str, Any] | None = None,
    plain: Example | None = None,
) -> Conversation:
    """Returns a cell that holds turns as a conversation.

    Args:
        value: A list of turns, or the JSON text of one, as csv files have it.
        column: The name of its column, for messages.
        system: A system prompt for conversations that begin without one.
        tools: What the template is told of tools.
        options: Further variables for the template.
        plain: The same row without a template.

    Raises:
        RowError: It is no list of turns, a role is unknown, the roles stand in a wrong order,
            or the assistant has no turn, or says nothing.
    """
    found = turns(value, column)
    if system is not None and not (found and found[0]["role"] in _SYSTEM):
        found = [{"role": "system", "content": system}, *found]
    check_order([turn["role"] for turn in found], column)
    own = [turn for turn in found if turn["role"] == "assistant"]
    if not any(turn["content"].strip() or len(turn) > 2 for turn in own):
        raise RowError(f"column {column!r}: the assistant says nothing, its content is empty")
    return Conversation(tuple(found), _json(tools, "tools"), dict(options or {}), plain)


def turns(value: Any, column: str) -> list[Turn]:
    """Returns a list of turns, each with its ``role`` and ``content``.

    Raises:
        RowError: It is no such list.
    """
    value = _json(value, column)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        raise RowError(
            f"column {column!r} must be a list of turns, "
            f'[{{"role": "user", "content": "..."}}, ...], got {value!r:.60}'
        )
    return [_turn(one, f"column {column!r}, turn {k}") for k, one in enumerate(value, 1)]


def _json(value: Any, column: str) -> Any:
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
        if "\\u" in value and has_half(found):
            raise RowError(f"column {column!r} has half of a character (a lone surrogate)")
        return found
    return value


def _turn(turn: Any, where: str) -> Turn:
    if not isinstance(turn, Mapping):
        raise RowError(f"{where} must have a role and a content, got {turn!r:.60}")
    if "role" not in turn and "from" in turn:
        rest = {key: item for key, item in turn.items() if key not in ("from", "value", "role")}
        role = _SHAREGPT.get(str(turn["from"]), turn["from"])
        turn = {"role": role, "content": turn.get("value"), **rest}
    role = turn.get("role")
    if role not in ROLES:
        raise RowError(f"{where}: unknown role, got {role!r:.40}; known: {', '.join(ROLES)}")
    # Arrow gives every turn the keys of all, with None where there is none.
    kept = {key: item for key, item in turn.items() if item is not None}
    kept["content"] = _content(turn.get("content"), where, bool(kept.get("tool_calls")))
    return kept


def _content(content: Any, where: str, calls: bool) -> str:
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        kinds = [one.get("type", "text") if isinstance(one, Mapping) else "" for one in content]
        other = [kind for kind in kinds if kind != "text"]
        if other:
            raise RowError(f"{where}: its content must be text, got a part of type {other[0]!r}")
        content = "".join(str(one.get("text") or "") for one in content)
    if content is None and calls:
        return ""
    if not isinstance(content, str):
        raise RowError(f"{where}: its content must be text, got {content!r:.60}")
    return content


def check_order(roles: Sequence[str], column: str) -> None:
    """Refuses roles in an order that no conversation has.

    A system turn stands first; an assistant's turn answers another role's. What else a
    template asks for, such as turns that alternate, it says itself.

    Raises:
        RowError: Says which turn stands where it cannot.
    """
    if "assistant" not in roles:
        seen = ", ".join(roles) or "no turn at all"
        raise RowError(f"column {column!r}: no turn of the assistant to learn from, got {seen}")
    for place, role in enumerate(roles):
        before = roles[place - 1] if place else None
        wrong = ""
        if role in _SYSTEM and place:
            wrong = f"a {role} turn must stand first"
        elif role == "assistant" and (before is None or before in _SYSTEM):
            wrong = "the assistant's turn must follow a user's"
        elif role == "assistant" and before == "assistant":
            wrong = "two of the assistant's turns in a row"
        if wrong:
            raise RowError(f"column {column!r}, turn {place + 1}: {wrong}, got {', '.join(roles)}")

"""Prompts: plain text or chat messages, from the several ways in which data sets write them."""

import json
import re
from typing import Any

import numpy as np

from siri.data.gold import MISSING, NoAnswer, as_text, kind

ROLES = ("system", "user", "assistant", "tool")
SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
SPEAKERS |= {"model": "assistant", "function_response": "tool", "observation": "tool"}
"""What ShareGPT's `from` calls the roles; their usual names are read as well."""
NOT_TEXT = "with an image or another part that is no text in the prompt"
NO_QUESTION = "with a conversation in which no user asks anything"

Messages = list[dict[str, str]]
_LISTS = ("messages", "conversations", "conversation")
_KEYS = "|".join(("role", "content", "from", "value", *_LISTS))
_LOOKS_LIKE_MESSAGES = re.compile(rf"(?:\[\s*)?\{{\s*(['\"])(?:{_KEYS})\1\s*:")
_ENCODED = re.compile(rf'"[\s\\"]*(?:\[\s*)?\{{\s*\\+"(?:{_KEYS})\\+"\s*:')
_LOOKS_LIKE_PARTS = re.compile(r"\s*\[\s*\{\s*\"\w+\"\s*:")
_MOST_ENCODED = 4
_TEXT_PARTS = ("text", "input_text", "output_text")
_KEYS_OF_PARTS = {name: {"type", "text"} for name in _TEXT_PARTS} | {"image": {"type"}}
_KEYS_OF_PARTS |= {name: {"type", name} for name in ("image_url", "input_audio", "file", "video_url")}
"""Keys of a part by its type: JSON text of anything else is text that happens to be JSON."""

PICTURES = frozenset(("image", "images", "video", "videos", "audio", "audios"))
"""Columns in which data sets keep what a placeholder in the text of a prompt stands for."""
_PLACEHOLDER = re.compile(r"<(?:image|video|audio)(?: ?\d{1,2})?>|<\|(?:image|video|audio)_pad\|>")


def has_placeholder(prompt: str | Messages) -> bool:
    """Whether the text of a prompt says where an image goes."""
    texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    return any(_PLACEHOLDER.search(text) for text in texts)


def read_prompt(value: Any) -> str | Messages:
    """The prompt that `value` means: text, or messages with `role` and `content`, or ShareGPT's `from` and `value`.
    Messages may be one alone, an object that holds them under `messages` or `conversations`, or JSON text of all that,
    even if it was encoded more than once; a content may be a list of text parts, or JSON text of it.

    Raises NoAnswer where there is no prompt or one that is not text alone, and TypeError for anything else.
    """
    if value is None:
        raise NoAnswer(MISSING)
    if isinstance(value, str):
        text = as_text(value)
        if not text:
            raise NoAnswer(MISSING)
        for _ in range(_MOST_ENCODED):
            if not _ENCODED.match(text):
                break
            inner = _decoded(text)
            text = inner.strip() if isinstance(inner, str) else text
        if not _LOOKS_LIKE_MESSAGES.match(text):
            return text
        value = _decoded(text)
    if isinstance(value, dict):  # one message, or a whole conversation
        value = next((value[name] for name in _LISTS if name in value), [value])
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, list):
        raise TypeError(f"the prompt is {kind(value)}, not text or chat messages")
    messages = [_message(message) for message in value]
    if not any(message["content"].strip() for message in messages):
        raise NoAnswer(MISSING)
    roles = {message["role"] for message in messages}
    if "user" not in roles and roles != {"assistant"}:  # of an answer alone nothing is left
        raise NoAnswer(NO_QUESTION)
    return messages


def without_answer(prompt: str | Messages) -> str | Messages:
    """The conversation up to the turn that is to be sampled: messages that end with the assistant's would show the
    model the answer that it has to find. Empty where nothing else is there."""
    if isinstance(prompt, str):
        return prompt
    end = len(prompt)
    while end and prompt[end - 1]["role"] == "assistant":
        end -= 1
    return prompt[:end] if end < len(prompt) else prompt


def _decoded(text: str) -> Any:
    """What a text holds that looks like messages."""
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError):
        raise TypeError("the prompt looks like a list of chat messages, but is not JSON") from None
    return messages


def _message(message: Any) -> dict[str, str]:
    if not isinstance(message, dict):
        raise TypeError(f"a chat message is {kind(message)}, not an object with 'role' and 'content'")
    role, content = message.get("role"), message.get("content")
    if role is None and content is None and "from" in message:
        role, content = message["from"], message.get("value")
        role = SPEAKERS.get(role, role) if isinstance(role, str) else role
    if isinstance(content, np.ndarray):
        content = content.tolist()
    if isinstance(content, str) and _LOOKS_LIKE_PARTS.match(content):
        content = _parts(content)
    if isinstance(content, list):
        content = "".join(map(_part, content))
    if not isinstance(role, str) or not isinstance(content, str):
        raise TypeError("a chat message needs a 'role' and a 'content' (or 'from' and 'value'), both text")
    if role not in ROLES:
        raise TypeError(f"the role {role!r} of a chat message is none of {', '.join(ROLES)}")
    return {"role": role, "content": as_text(content, strip=False)}


def _parts(text: str) -> Any:
    """The parts that a content holds as JSON text; the text itself where it only looks like them."""
    try:
        parts = json.loads(text)
    except (ValueError, RecursionError):
        return text
    plain = all(isinstance(part, dict) and set(part) == _KEYS_OF_PARTS.get(str(part.get("type"))) for part in parts)
    return parts if plain else text


def _part(part: Any) -> str:
    """The text of a part of a message's content."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise TypeError(f"a part of a chat message is {kind(part)}, not text or an object with a 'type'")
    named = part.get("type") or "text"
    if named not in _TEXT_PARTS:
        raise NoAnswer(NOT_TEXT)
    if not isinstance(part.get("text"), str):
        raise TypeError(f"a part of type {named!r} of a chat message has no 'text'")
    return part["text"]

"""What lies beside a vocabulary in Hugging Face's layout: special tokens that it declares, and a chat template."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transnormer_jax.errors import UserError

TOKENIZER_CONFIG, SPECIAL_TOKENS, CHAT_TEMPLATE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_KINDS = ("bos_token", "eos_token", "pad_token")


class SpecialTokens(NamedTuple):
    """The special tokens of a vocabulary.

    Attributes:
      ids: "bos_token", "eos_token" and "pad_token" -> id, of those that there are.
      names: the same -> name.
      added: name -> id of those that are declared as special and may not be in the vocabulary's own file.
    """

    ids: Mapping[str, int]
    names: Mapping[str, str]
    added: Mapping[str, int]


def special_tokens(
    directory: Path, find: Callable[[str], int | None], guessed: Mapping[str, str | None]
) -> SpecialTokens:
    """The special tokens that the files beside a vocabulary declare; where they say nothing, those that are guessed.

    Args:
      directory: of the vocabulary.
      find: name -> id in the vocabulary, or None.
      guessed: kind -> name.

    Raises:
      UserError: a file cannot be read, a declared begin or end is no token, or there is no end token.
    """
    config, declared = read_settings(directory / TOKENIZER_CONFIG), dict[str, str | None]()
    for source in (read_settings(directory / SPECIAL_TOKENS), config):
        for kind in source.keys() & _KINDS:
            declared[kind] = _name(source[kind]) or declared.get(kind)
    added = _added(config)
    ids, names = dict[str, int](), dict[str, str]()
    for kind in _KINDS:
        # No end is no declaration: every vocabulary needs one.
        name = declared[kind] if kind in declared and (kind != "eos_token" or declared[kind]) else guessed.get(kind)
        index = None if name is None else find(name) if find(name) is not None else added.get(name)
        if index is not None and name is not None:
            ids[kind], names[kind] = index, name
        elif name is not None and kind != "pad_token":  # padding is often declared and never added; it is not needed
            raise UserError(
                f"the files beside the tokenizer in {str(directory)!r} declare {name!r} as its {kind}, which is not in "
                "the vocabulary: correct tokenizer_config.json or special_tokens_map.json."
            )
    return SpecialTokens(ids, names, added)


def read_settings(path: Path) -> dict[str, Any]:
    """The object in a file of JSON, with or without a byte order mark; an empty one if there is no file.

    Raises:
      UserError: it cannot be read, or holds something else.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {str(path)!r} ({error}): give an intact file, or remove it.") from error
    if not isinstance(content, dict):
        raise UserError(f"{str(path)!r} holds no JSON object: give an intact file, or remove it.")
    return content


def find_chat_template(directory: Path) -> str | None:
    """The chat template beside a tokenizer of Hugging Face, or None.

    Raises:
      UserError: a file there cannot be read.
    """
    alone = directory / CHAT_TEMPLATE
    if alone.is_file():
        try:
            return alone.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {str(alone)!r} ({error}): give a text file.") from error
    template = read_settings(directory / TOKENIZER_CONFIG).get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default", 0)
    if not isinstance(template, str | None):
        raise UserError(
            f"{str(directory / TOKENIZER_CONFIG)!r} has no chat template that is a text or called default: correct it."
        )
    return template


def _name(token: Any) -> str | None:
    name = token.get("content") if isinstance(token, dict) else token
    if not isinstance(name, str | None):
        raise UserError(f"the files beside the tokenizer declare the special token {token!r}: give its name.")
    return name


def _added(config: Mapping[str, Any]) -> dict[str, int]:
    try:
        tokens = config.get("added_tokens_decoder") or {}
        added = {token["content"]: int(index) for index, token in tokens.items() if token.get("special")}
        if min(added.values(), default=0) < 0:
            raise ValueError("a negative id")
        return added
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"added_tokens_decoder in tokenizer_config.json cannot be read ({type(error).__name__}): correct it."
        ) from error

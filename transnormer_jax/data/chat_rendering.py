"""Messages to text by a chat template: Jinja with the filters, tags and functions that Hugging Face's templates use."""

import datetime
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

from transnormer_jax.errors import UserError

Message = Mapping[str, Any]

# Marks in a rendered text are halves of surrogate pairs, which no text that UTF-8 can spell has in it: these around
# `{% generation %}`, and those from U+D800 on in place of the first character of a name of a special token.
GENERATION_BEGINS, GENERATION_ENDS = "\udc00", "\udc01"
_HIDDEN = 0xD800
_MARKS = "generation_marks"  # a variable of templates


class ChatRenderer:
    """A template, and the names of special tokens that stay text where a message says them.

    In `render`'s result such a name has another first character, so that a search for special tokens finds those which
    the template wrote. `reveal` restores it. A name that the template itself looks for in a message, as many do for
    `</think>`, is not hidden: what the template does about it is what counts.
    """

    def __init__(self, source: str, variables: Mapping[str, str], special_names: Collection[str]):
        """Compiles a template.

        Args:
          source: Jinja.
          variables: what it sees beside the messages, such as `eos_token`.
          special_names: of special tokens.

        Raises:
          UserError: it is no Jinja.
        """
        # As `transformers` fills in its templates; a template of a stranger may do no harm.
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json  # Jinja's own escapes HTML
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _strftime_now}
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise UserError(f"the chat template cannot be read ({error}): correct it.") from error
        self.marks_generation = re.search(r"{%[-+]?\s*generation\b", source) is not None
        self._variables = dict(variables)
        self._names = {name for name in special_names if name}
        firsts = sorted({name[0] for name in self._names})
        self._hide = {first: chr(_HIDDEN + i) for i, first in enumerate(firsts)}
        self._reveal = {ord(hidden): first for first, hidden in self._hide.items()}

    def render(self, messages: Sequence[Message], tools: Sequence[Any] | None, *, reply: bool) -> str:
        """Returns the text, with marks: see the class, and `GENERATION_BEGINS`.

        Args:
          messages: `role`, `content` and what else the template reads.
          tools: JSON schemas of functions.
          reply: whether the assistant is to write next, so that its turn is opened.

        Raises:
          UserError: the template refuses the messages.
        """
        try:
            content = _map_strings(_valid, {"messages": [*map(_as_transformers_gives_it, messages)], "tools": tools})
            text = self._fill(content, reply)
        except Exception as error:  # A template is foreign code.
            raise UserError(f"the chat template refuses the messages ({_one_line(error)}): change them.") from error
        said = set(self._pattern(self._names).findall("\n".join(_strings(content))))
        hidden = {name for name in said if self._is_text(name, content, reply, text)}
        return self._fill(self._hidden(content, hidden), reply) if hidden else text

    def reveal(self, text: str) -> str:
        """Returns a text, or a part of one, with the names in it as they were."""
        return text.translate(self._reveal)

    def _is_text(self, name: str, content: Any, reply: bool, text: str) -> bool:
        """Whether a template copies the name as it does any other text."""
        try:
            return self.reveal(self._fill(self._hidden(content, {name}), reply)) == text
        except Exception:
            return False

    def _fill(self, content: Mapping[str, Any], reply: bool) -> str:
        arguments = {"documents": None, "add_generation_prompt": reply, **content, **self._variables}
        text = self._template.render(arguments, **{_MARKS: (GENERATION_BEGINS, GENERATION_ENDS)})
        if self.marks_generation:
            plain = self._template.render(arguments, **{_MARKS: ("", "")})
            if text.translate(dict.fromkeys(map(ord, (GENERATION_BEGINS, GENERATION_ENDS)))) != plain:
                raise jinja2.TemplateError("it filters what its {% generation %} blocks hold")
        return text

    def _hidden(self, content: Any, names: Collection[str]) -> Any:
        pattern = self._pattern(names)

        def hide(text: str) -> str:
            places = [match.start() for match in pattern.finditer(text)]
            characters = list(text)
            for place in places:
                characters[place] = self._hide[text[place]]
            return "".join(characters)

        return _map_strings(hide, content, skip="role")

    def _pattern(self, names: Collection[str]) -> re.Pattern[str]:
        # Looks ahead, since one name may begin inside another.
        longest_first = sorted(names, key=len, reverse=True)
        return re.compile(f"(?=({'|'.join(map(re.escape, longest_first))}))" if names else "(?!)")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` ... `{% endgeneration %}`: what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012, of the class above

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    @jinja2.pass_context
    def _marked(self, context: jinja2.runtime.Context, caller: Callable[[], str]) -> str:
        begin, end = context[_MARKS]
        return f"{begin}{caller()}{end}"


def _map_strings(function: Callable[[str], str], value: Any, skip: str = "") -> Any:
    """The value with each string in it, but for keys and what is at the key `skip`, replaced."""
    if isinstance(value, str):
        return function(value)
    if isinstance(value, Mapping):
        return {key: one if key == skip else _map_strings(function, one, skip) for key, one in value.items()}
    return [_map_strings(function, one, skip) for one in value] if isinstance(value, list | tuple) else value


def _strings(value: Any) -> list[str]:
    found = list[str]()

    def keep(text: str) -> str:
        found.append(text)
        return text

    _map_strings(keep, value)
    return found


def _valid(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _as_transformers_gives_it(message: Message) -> dict[str, Any]:
    """Without nulls, which a template may take for a text, and with reasoning under the names that templates read."""
    given = {key: value for key, value in message.items() if value is not None}
    reasoning = next((given[name] for name in ("reasoning_content", "thinking", "reasoning") if name in given), None)
    return given if reasoning is None else {"thinking": reasoning, **given, "reasoning_content": reasoning}


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _refuse(message: str) -> Any:
    raise jinja2.TemplateError(message)


def _one_line(error: Exception) -> str:
    said = " ".join(str(error).split())
    return said if isinstance(error, jinja2.TemplateError) and said else f"{type(error).__name__}: {said}"

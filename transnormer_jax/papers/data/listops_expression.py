"""ListOps expressions: their tokens, their text, their value (Nangia and Bowman 2018, arXiv 1804.06028)."""

import numpy as np
import numpy.typing as npt

from transnormer_jax.errors import UserError

# Token ids are places in this list; 0 is padding. An operator and its opening bracket are one token.
SYMBOLS = ("<pad>", *"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
ZERO, MIN, MAX, MED, SUM, CLOSE = (SYMBOLS.index(name) for name in ("0", "[MIN", "[MAX", "[MED", "[SM", "]"))


def parse(text: str) -> npt.NDArray[np.uint8]:
    """Returns the tokens [n] of an expression as Long Range Arena writes it; its binary parentheses fall away.

    Raises:
      UserError: the text holds something else than the symbols.
    """
    ids = {symbol: index for index, symbol in enumerate(SYMBOLS) if index}
    words = text.replace("(", " ").replace(")", " ").split()
    if unknown := sorted(set(words) - ids.keys()):
        raise UserError(f"{unknown[0]!r} is not a ListOps symbol: use {' '.join(ids)} and parentheses.")
    return np.array([ids[word] for word in words], np.uint8)


def evaluate(tokens: npt.NDArray[np.integer]) -> int:
    """Returns the value, 0 to 9, of the tokens [n] of an expression, without padding.

    The median of an even number of arguments is the mean of the middle two, truncated; a sum is taken modulo 10.

    Raises:
      UserError: the brackets do not match, or an operator has no argument.
    """
    operators: list[int] = []
    arguments: list[list[int]] = [[]]
    for token in tokens.tolist():
        if MIN <= token <= SUM:
            operators.append(token)
            arguments.append([])
        elif token != CLOSE:
            arguments[-1].append(token - ZERO)
        elif operators and arguments[-1]:
            value = _apply(operators.pop(), sorted(arguments.pop()))
            arguments[-1].append(value)
        else:
            raise UserError("a ListOps bracket closes nothing: every list is an operator, its arguments and ']'.")
    if operators or len(arguments[0]) != 1:
        raise UserError("a ListOps expression is one digit or one closed list: correct its brackets.")
    return arguments[0][0]


def _apply(operator: int, ordered: list[int]) -> int:
    if operator == MED:
        return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2
    return {MIN: ordered[0], MAX: ordered[-1], SUM: sum(ordered) % 10}[operator]

"""Draws docs/images/rooms.svg, rooms with their imports and the way of a batch: `python -m docs.picture`.

The arrows are the imports in the code; tests/test_architecture.py compares the way of a batch with a real step.
"""

from collections.abc import Iterable
from pathlib import Path

import grimp

FILE = Path(__file__).parent / "images" / "rooms.svg"

# Room -> x, y of its box. Commands stand for all modules that are run.
_PLACES = {
    "commands": (220, 10),
    "training": (170, 110),
    "inference": (340, 110),
    "tasks": (170, 190),
    "papers": (340, 190),
    "models": (255, 270),
    "layers": (255, 350),
    "ops": (255, 430),
    "data": (10, 190),
    "distributed": (430, 350),
}
_WIDTH, _HEIGHT = 120, 40

# The rooms that a training step enters, in this order, and what it has there.
WAY = [
    ("data", "rows [B, N] int32"),
    ("distributed", "laid over the mesh"),
    ("training", "micro-batches, gradient, update"),
    ("tasks", "tokens -> sums of loss"),
    ("models", "x [B, N, D], logits [B, N, V]"),
    ("layers", "q, k, v [B, N, H, K]"),
    ("ops", "states [B, H, K, V]"),
]

_STYLE = (
    "text{font:14px sans-serif;fill:#222}.small{font-size:12px;fill:#555}rect{fill:#eef1fb;stroke:#3f51b5;rx:6px}"
    "line{stroke:#9aa3c7;stroke-width:1.3;marker-end:url(#head)}circle{fill:#3f51b5}.number{fill:#fff;font-size:12px}"
)


def imports() -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports the second."""
    graph = grimp.build_graph("transnormer_jax")
    children = {name.rpartition(".")[2]: name for name in graph.find_children("transnormer_jax")}
    helpers = {"errors", "log", "registry", "start", "storage"}
    helpers |= {"command", "command_help", "config_flag", "run_flags", "__main__"}
    commands = set(children) - set(_PLACES) - helpers
    rooms = {name: [name] for name in _PLACES if name != "commands"} | {"commands": sorted(commands)}

    def direct(importers: Iterable[str], imported: Iterable[str]) -> bool:
        return any(
            graph.direct_import_exists(importer=children[a], imported=children[b], as_packages=True)
            for a in importers
            for b in imported
        )

    return {(a, b) for a in rooms for b in rooms if a != b and b != "commands" and direct(rooms[a], rooms[b])}


def svg() -> str:
    """The picture."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 560 700" role="img">',
        "<title>Rooms, what imports what, and the way of a batch</title>",
        f"<style>{_STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#9aa3c7"/></marker></defs>',
        '<rect x="0" y="0" width="560" height="700" style="fill:#fff;stroke:none"/>',
    ]
    parts += [_arrow(a, b) for a, b in sorted(imports())]
    numbers = {room: number for number, (room, _) in enumerate(WAY, 1)}
    for room, (x, y) in _PLACES.items():
        parts.append(f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}"/>')
        parts.append(f'<text x="{x + _WIDTH / 2:g}" y="{y + 25}" text-anchor="middle">{room}</text>')
        if room in numbers:
            parts += _badge(x + 2, y + 2, numbers[room])
    parts.append('<text x="10" y="515">The way of a batch</text>')
    for number, (room, words) in enumerate(WAY, 1):
        y = 515 + 24 * number
        parts += _badge(20, y - 5, number)
        parts.append(f'<text x="38" y="{y}">{room}</text><text x="150" y="{y}" class="small">{_escape(words)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _arrow(importer: str, imported: str) -> str:
    (ax, ay), (bx, by) = _PLACES[importer], _PLACES[imported]
    if by > ay + _HEIGHT:  # downwards, border to border
        start, end = (ax + _WIDTH / 2, ay + _HEIGHT), (bx + _WIDTH / 2, by)
    else:
        left = bx < ax
        start = (ax if left else ax + _WIDTH, ay + _HEIGHT / 2)
        end = (bx + _WIDTH if left else bx, by + _HEIGHT / 2)
    return f'<line x1="{start[0]:g}" y1="{start[1]:g}" x2="{end[0]:g}" y2="{end[1]:g}"/>'


def _badge(x: float, y: float, number: int) -> list[str]:
    return [
        f'<circle cx="{x:g}" cy="{y:g}" r="9"/>',
        f'<text x="{x:g}" y="{y + 4:g}" text-anchor="middle" class="number">{number}</text>',
    ]


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


if __name__ == "__main__":
    FILE.write_text(svg())

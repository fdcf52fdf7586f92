"""Stacks of frames as a picture: widths are time, the outermost is at the bottom, colours say what kind of code it is.

It is an SVG that can be read as it is; in a browser it tells more where the mouse is, and a click gives a frame, and
what it called, the whole width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Final

from benches.sampling import INTERPRETER, KERNEL, LIBRARY, PYTHON, RUST, THREAD, Frame, Profile

COLOURS: Final = {
    PYTHON: "#7fb2e5",
    INTERPRETER: "#c3d5e8",
    RUST: "#f0a35e",
    LIBRARY: "#b6d38a",
    KERNEL: "#e58a8a",
    THREAD: "#d8d8d8",
}
WORDS: Final = {
    PYTHON: "Python functions",
    INTERPRETER: "the interpreter at work in them",
    RUST: "Rust",
    LIBRARY: "C: libc, libuv, uvloop",
    KERNEL: "kernel",
}
WIDTH: Final = 1600
MARGIN: Final = 12
ROW: Final = 17
#: Of title, explanation and legend, and of the line that says what the mouse is on.
HEAD: Final = 92
FOOT: Final = 30
#: Columns of a character, nearly.
LETTER: Final = 6.65
#: What is narrower is left out, and so is what it called.
NARROWEST: Final = 0.4

SCRIPT: Final = """
const root = document.documentElement, frames = [...root.querySelectorAll('g.f')], said = root.querySelector('#said');
const find = root.querySelector('#find'), all = [MARGIN, WIDTH - 2 * MARGIN];
for (const g of frames) {
  const [rect, title] = [g.querySelector('rect'), g.querySelector('title')];
  g.at = {x: +rect.getAttribute('x'), y: +rect.getAttribute('y'), w: +rect.getAttribute('width')};
  g.about = title.textContent, g.name = g.about.split('\\n')[0], g.share = +g.dataset.n;
}
function zoom(to) {
  const scale = all[1] / to.w;
  for (const g of frames) {
    const {x, y, w} = g.at, below = y > to.y && x <= to.x + .01 && x + w >= to.x + to.w - .01;
    const shown = below || (y <= to.y && x >= to.x - .01 && x + w <= to.x + to.w + .01);
    g.style.display = shown ? '' : 'none';
    if (!shown) continue;
    const left = below ? all[0] : all[0] + (x - to.x) * scale, width = below ? all[1] : w * scale;
    g.querySelector('rect').setAttribute('x', left);
    g.querySelector('rect').setAttribute('width', width);
    const text = g.querySelector('text'), room = Math.floor((width - 6) / LETTER);
    text.setAttribute('x', left + 3);
    text.textContent = room < 3 ? '' : g.name.length <= room ? g.name : g.name.slice(0, room - 1) + '…';
  }
}
function search() {
  const wanted = prompt('Show frames whose name has in it (nothing: all)');
  if (wanted === null) return;
  // What is in a frame that was found counts once.
  const hits = frames.filter(g => wanted && g.name.toLowerCase().includes(wanted.toLowerCase()));
  const outer = hits.filter(g => !hits.some(o => o !== g && o.at.y > g.at.y && o.at.x <= g.at.x + .01 &&
    o.at.x + o.at.w >= g.at.x + g.at.w - .01));
  for (const g of frames) g.style.opacity = !wanted || hits.includes(g) ? 1 : .25;
  const share = outer.reduce((sum, g) => sum + g.share, 0) / SAMPLES;
  find.textContent = wanted ? `${wanted}: ${(100 * share).toFixed(1)} %` : 'search';
}
root.addEventListener('click', event => {
  if (event.target === find) return search();
  const g = event.target.closest('g.f');
  zoom(g ? g.at : {x: all[0], y: 1e9, w: all[1]});
});
root.addEventListener('mouseover', event => {
  const g = event.target.closest('g.f');
  said.textContent = g ? g.about.replaceAll('\\n', '   ') : '';
});
"""


@dataclass(slots=True)
class Node:
    total: int = 0
    own: int = 0
    inner: dict[Frame, Node] = field(default_factory=dict)


def tree(profile: Profile) -> Node:
    """Stacks that begin alike, together; where a frame is in the source does not tell it from another."""
    root = Node()
    for stack, count in profile.stacks.items():
        node = root
        node.total += count
        for frame in stack:
            node = node.inner.setdefault(Frame(frame.kind, frame.name), Node())
            node.total += count
        node.own += count
    return root


def svg(title: str, about: str, profile: Profile) -> str:
    root = tree(profile)
    places = _wheres(profile)
    samples = max(profile.samples, 1)
    scale = (WIDTH - 2 * MARGIN) / samples
    drawn = list(_placed(root, MARGIN, 0, scale))
    depth = 1 + max((level for _, _, level, _ in drawn), default=0)
    height = HEAD + depth * ROW + FOOT
    script = SCRIPT.replace("MARGIN", str(MARGIN)).replace("WIDTH", str(WIDTH))
    script = script.replace("LETTER", str(LETTER)).replace("SAMPLES", str(samples))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="ui-monospace, Menlo, Consolas, \'DejaVu Sans Mono\', monospace" font-size="11">',
        "<style>g.f { cursor: pointer } g.f:hover rect { stroke: #000 } text { pointer-events: none } "
        "#find { pointer-events: all; cursor: pointer; text-decoration: underline }</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{MARGIN}" y="24" font-size="17" font-weight="bold">{escape(title)}</text>',
        f'<text x="{MARGIN}" y="44" font-size="12">{escape(about)}</text>',
        *_legend(profile),
        f'<text id="find" x="{WIDTH - MARGIN}" y="24" font-size="12" text-anchor="end">search</text>',
    ]
    for frame, node, level, x in drawn:
        lines.append(_rectangle(frame, node, places[frame], x, height - FOOT - (level + 1) * ROW, scale, samples))
    lines += [f'<text id="said" x="{MARGIN}" y="{height - 10}" font-size="12"> </text>']
    return "\n".join([*lines, f"<script><![CDATA[{script}]]></script>", "</svg>", ""])


def _wheres(profile: Profile) -> Mapping[Frame, str]:
    """Where in the source most of the time of a frame is spent."""
    counts: dict[Frame, Counter[str]] = {}
    for stack, count in profile.stacks.items():
        for frame in stack:
            counts.setdefault(Frame(frame.kind, frame.name), Counter())[frame.where] += count
    return {frame: wheres.most_common(1)[0][0] for frame, wheres in counts.items()}


def _placed(node: Node, x: float, level: int, scale: float) -> Iterator[tuple[Frame, Node, int, float]]:
    """By name, so that pictures can be compared."""
    for frame, inner in sorted(node.inner.items(), key=lambda item: (item[0].name, item[0].kind)):
        if inner.total * scale >= NARROWEST:
            yield frame, inner, level, x
            yield from _placed(inner, x, level + 1, scale)
        x += inner.total * scale


def _legend(profile: Profile) -> Iterator[str]:
    """Each kind, and the share of the time that is spent in it and not in what it calls."""
    own, x = profile.by_kind(), float(MARGIN)
    for kind, name in WORDS.items():
        # Nothing is spent in a Python function itself: it is the interpreter that works.
        spent = own[INTERPRETER] + own[PYTHON] if kind == INTERPRETER else own[kind]
        label = name if kind == PYTHON else f"{name} {spent / max(profile.samples, 1):.1%}"
        yield f'<rect class="k" x="{x:.1f}" y="58" width="14" height="14" fill="{COLOURS[kind]}"/>'
        yield f'<text x="{x + 20:.1f}" y="69" font-size="12">{escape(label)}</text>'
        x += 20 + 7.4 * len(label) + 24
    yield f'<text x="{x:.1f}" y="69" font-size="12" fill="#555">(share of the time in such code itself)</text>'


def _rectangle(frame: Frame, node: Node, where: str, x: float, y: float, scale: float, samples: int) -> str:
    width = node.total * scale
    room = int((width - 6) / LETTER)
    shown = "" if room < 3 else frame.name if len(frame.name) <= room else f"{frame.name[: room - 1]}…"
    share = f"{node.total / samples:.2%} of the time, {node.own / samples:.2%} in itself, {node.total} samples"
    about = "\n".join(filter(None, [frame.name, f"{frame.kind}: {share}", where]))
    return (
        f'<g class="f" data-kind="{frame.kind}" data-n="{node.total}"><title>{escape(about)}</title>'
        f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{ROW - 1}" rx="1" fill="{COLOURS[frame.kind]}" '
        f'stroke="white" stroke-width="0.5"/><text x="{x + 3:.2f}" y="{y + 12}">{escape(shown)}</text></g>'
    )

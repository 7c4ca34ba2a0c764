#!/usr/bin/env python3
"""Draws docs/attention-visible.svg and docs/attention-exchanges.svg, the pictures of docs/attention.md.

Python's own library is enough:  python3 scripts/draw_attention.py [docs]
"""
import sys

RANKS = ["#3b6fb6", "#e08214", "#4d9a4a", "#9460a8"]
INK, EMPTY, GRID = "#222", "#f4f4f4", "#d4d4d4"
ALL = 10**9


def text(x, y, words, size=12, anchor="start", weight="normal", color=INK):
    return (f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" '
            f'font-weight="{weight}" fill="{color}">{words}</text>')


def box(x, y, width, height, fill, stroke=GRID, opacity=1.0):
    return (f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}" '
            f'stroke="{stroke}" stroke-width="0.7" fill-opacity="{opacity}"/>')


def svg(width, height, parts):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-family="DejaVu Sans, Helvetica, sans-serif">\n'
            f'<rect width="{width}" height="{height}" fill="white"/>\n'
            '<defs><marker id="tip" markerWidth="7" markerHeight="6" refX="6" refY="3" '
            'orient="auto"><path d="M0,0 L7,3 L0,6 z" fill="#222"/></marker></defs>\n'
            + "\n".join(parts) + "\n</svg>\n")


def contiguous(n, p):
    return p * 4 // n


def zigzag(n, p):
    piece = p * 8 // n
    return piece if piece < 4 else 7 - piece


def sees(kind, query, key):
    """What struct visibility says: back, ahead, sinks, document ends."""
    back, ahead, sinks, ends = kind
    if any((query < end) != (key < end) for end in ends):
        return False
    return key <= query + ahead and (key >= query - back or key < sinks)


def cells(kind, owner, n, query):
    """Runs of equal cells that the query sees: color, opacity, first key, how many."""
    runs = []
    for key in (k for k in range(n) if sees(kind, query, k)):
        same = owner(n, key) == owner(n, query)
        look = (RANKS[owner(n, key)], 0.38 if same else 1.0)
        if runs and runs[-1][:2] == look and runs[-1][2] + runs[-1][3] == key:
            runs[-1] = (*look, runs[-1][2], runs[-1][3] + 1)
        else:
            runs.append((*look, key, 1))
    return runs


def panel(x, y, title, note, kind, owner):
    n, cell = 16, 11
    parts = [text(x, y - 32, title, 13, weight="bold"), text(x, y - 17, note, 11)]
    for p in range(n):
        color = RANKS[owner(n, p)]
        parts.append(box(x + p * cell, y - 8, cell, 5, color, "none"))
        parts.append(box(x - 8, y + p * cell, 5, cell, color, "none"))
    parts.append(box(x, y, n * cell, n * cell, EMPTY))
    for query in range(n):
        for fill, opacity, first, count in cells(kind, owner, n, query):
            parts.append(box(x + first * cell, y + query * cell, count * cell, cell, fill, "none",
                             opacity))
    lines = "".join(f"M{x + i * cell},{y}v{n * cell}M{x},{y + i * cell}h{n * cell}"
                    for i in range(n + 1))
    parts.append(f'<path d="{lines}" stroke="{GRID}" stroke-width="0.7"/>')
    return parts


def draw_visible():
    panels = [
        ("causal", "back all, ahead 0; zigzag", (ALL, 0, 0, []), zigzag),
        ("causal window of 4", "back 3, ahead 0", (3, 0, 0, []), contiguous),
        ("window of 4, 2 sinks", "back 3, ahead 0, sinks 2", (3, 0, 2, []), contiguous),
        ("symmetric window", "back 2, ahead 2", (2, 2, 0, []), contiguous),
        ("both ways", "back all, ahead all", (ALL, ALL, 0, []), contiguous),
        ("packed documents", "both ways, ends 6, 9, 16", (ALL, ALL, 0, [6, 9]), contiguous),
        ("causal, packed", "back all, ahead 0, ends 6, 9, 16", (ALL, 0, 0, [6, 9]), contiguous),
        ("only what is far behind", "back all, ahead -4", (ALL, -4, 0, []), contiguous),
    ]
    parts = [text(20, 26, "Which keys (columns) each query (row) sees; 16 tokens on 4 ranks", 15,
                  weight="bold")]
    for r in range(4):
        parts += [box(20 + r * 80, 38, 12, 12, RANKS[r]), text(37 + r * 80, 48, f"rank {r}", 11)]
    parts += [box(345, 38, 12, 12, RANKS[0]), box(357, 38, 12, 12, RANKS[1]),
              text(374, 48, "a key of another rank: it travels", 11),
              box(590, 38, 12, 12, RANKS[0], GRID, 0.38), box(602, 38, 12, 12, RANKS[1], GRID, 0.38),
              text(619, 48, "a key of the query's own rank", 11)]
    for i, (title, note, kind, owner) in enumerate(panels):
        parts += panel(30 + i % 4 * 208, 112 + i // 4 * 240, title, note, kind, owner)
    return svg(850, 540, parts)


def bar(x, y, width, owner, n_piece):
    parts, piece = [], width / n_piece
    for i in range(n_piece):
        parts.append(box(x + i * piece, y, piece, 26, RANKS[owner(n_piece, i)], "white"))
        parts.append(text(x + (i + 0.5) * piece, y + 17, f"{owner(n_piece, i)}", 12, "middle",
                          "bold", "white"))
    return parts


def arc(x0, x1, y, height):
    return (f'<path d="M{x0},{y} C{x0},{y - height} {x1},{y - height} {x1},{y - 2}" fill="none" '
            f'stroke="{INK}" stroke-width="1.3" marker-end="url(#tip)"/>')


def halo_row(x, y, width, owner, n_piece, title, ahead):
    parts = [text(x, y - 46, title, 13, weight="bold")]
    parts += bar(x, y, width, owner, n_piece)
    piece, halo = width / n_piece, width / 22
    for i in range(1, n_piece):
        edge = x + i * piece
        if owner(n_piece, i) == owner(n_piece, i - 1):
            continue
        parts.append(box(edge - halo, y, halo, 26, "white", "none", 0.45))
        parts.append(arc(edge - halo / 2, edge + halo * 0.9, y - 2, 26))
        if ahead:
            parts.append(box(edge, y, halo, 26, "white", "none", 0.45))
            parts.append(arc(edge + halo / 2, edge - halo * 1.4, y - 2, 34))
    return parts


def ring_panel(x, y):
    parts = [text(x, y, "ring (pass-KV): every shard goes to every rank, a step at a time", 13,
                  weight="bold")]
    for step in range(4):
        top = y + 20 + step * 34
        words = "own" if step == 0 else f"step {step}"
        parts.append(text(x, top + 16, words, 11))
        for rank in range(4):
            holder = (rank - step) % 4
            left = x + 70 + rank * 150
            parts.append(box(left, top, 74, 22, RANKS[holder], "white",
                             0.38 if step == 0 else 1.0))
            parts.append(text(left + 37, top + 15, f"shard {holder}", 11, "middle", "normal",
                              INK if step == 0 else "white"))
            if step == 0:
                parts.append(text(left + 37, top - 5, f"rank {rank}", 11, "middle", "bold"))
    parts.append(text(x + 70, y + 172, "each rank receives 3 shards of 4; while one is attended "
                      "the next is on its way", 11))
    return parts


def draw_exchanges():
    parts = ring_panel(20, 28)
    parts += halo_row(20, 276, 700, contiguous, 4,
                      "halo, causal window, contiguous: one window from the rank before", False)
    parts += halo_row(20, 376, 700, zigzag, 8,
                      "halo, causal window, zigzag: one window before each of two pieces", False)
    parts += halo_row(20, 476, 700, contiguous, 4,
                      "halo, symmetric window, contiguous: half a window from either side", True)
    parts.append(text(20, 522, "numbers: the rank that owns the tokens; pale: the rows that travel; "
                      "nothing else does", 11))
    return svg(750, 540, parts)


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else "docs"
    for name, draw in (("visible", draw_visible), ("exchanges", draw_exchanges)):
        with open(f"{folder}/attention-{name}.svg", "w", encoding="utf-8") as out:
            out.write(draw())


if __name__ == "__main__":
    main()

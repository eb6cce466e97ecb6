"""The report's page: its style sheet, and the few pieces of HTML around the content."""

from html import escape

STYLE = """
:root { --ink: #1f2937; --muted: #6b7280; --line: #e7e5e4; --paper: #fff; --good: #0f766e; --bad: #b91c1c; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f5f4; color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 36px 40px 56px; background: var(--paper); min-height: 100vh; border-inline: 1px solid var(--line); }
svg { display: block; max-width: 100%; height: auto; font-family: inherit; }
h1 { font-size: 34px; line-height: 1.15; margin: 2px 0 18px; letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { font-size: 22px; margin: 0 0 4px; letter-spacing: -.01em; }
h3 { font-size: 15px; margin: 0 0 8px; }
small { color: var(--muted); font-weight: 400; }
section { margin-top: 46px; padding-top: 22px; border-top: 2px solid var(--ink); }
section > p { color: var(--muted); margin: 0 0 18px; }
.kicker { text-transform: uppercase; letter-spacing: .12em; font-size: 12px; color: var(--muted); margin: 0; font-weight: 600; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 5px 18px; margin: 0; font-size: 14px; }
.facts dt { color: var(--muted); } .facts dd { margin: 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 18px; margin-top: 30px; }
.card { border: 1px solid var(--line); border-top: 4px solid var(--tone); border-radius: 6px; padding: 16px 20px; }
.card p { margin: 0 0 10px; font-size: 14px; } .card ul { margin: 0; padding: 10px 0 0; list-style: none; border-top: 1px solid var(--line); font-size: 13px; }
.card li { display: flex; justify-content: space-between; }
.card .big { font-size: 40px; line-height: 1.1; font-weight: 650; letter-spacing: -.02em; margin: 0 0 4px; }
.higher { color: var(--good); } .lower { color: var(--bad); } .unclear { color: var(--ink); } .none { color: #a8a29e; }
.wide { overflow-x: auto; }
table.metrics { border-collapse: collapse; width: 100%; font-size: 12.5px; font-variant-numeric: tabular-nums; }
.metrics th, .metrics td { padding: 6px 7px; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; white-space: nowrap; }
.metrics thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
.metrics th.group { color: var(--tone); border-bottom: 2px solid var(--tone); text-align: center; }
.metrics th.name { text-align: left; padding-left: 0; white-space: normal; min-width: 132px; font-weight: 600; }
.metrics small { display: block; font-size: 11px; line-height: 1.35; }
.metrics .left { text-align: left; white-space: normal; }
.metrics tr:target { background: #fef9c3; }
.reason { display: block; color: var(--bad); font-size: 11px; font-weight: 400; }
.note, figcaption { color: var(--muted); font-size: 12.5px; margin: 8px 0 0; }
figure { margin: 26px 0 0; } figure h3 { margin-bottom: 10px; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 4px 30px; }
.three { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 0 22px; }
details { margin-top: 24px; } summary { cursor: pointer; font-weight: 600; font-size: 14px; }
code { font: 12px ui-monospace, "DejaVu Sans Mono", monospace; } a { color: inherit; text-decoration-color: #a8a29e; text-underline-offset: 2px; }
li { margin: 3px 0; }
@media print { body { background: #fff; } main { border: 0; padding: 0; } section { break-inside: avoid-page; } }
@media (max-width: 640px) { main { padding: 20px 16px; } .two { grid-template-columns: 1fr; } }
"""


def document(title: str, body: str, style: str) -> str:
    """A complete page; `body` is HTML, `title` text."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title><style>{style}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body><main>{body}</main></body></html>\n'


def section(title: str, intro: str, body: str) -> str:
    """A titled part of the page; `body` is HTML, the rest text."""
    lead = f"<p>{escape(intro)}</p>" if intro else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{body}</section>"


def figure(title: str, svg: str, caption: str = "") -> str:
    """A figure with its title above and what to read from it below."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><h3>{escape(title)}</h3>{svg}{below}</figure>"

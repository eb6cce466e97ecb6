"""The report's figures as SVG text: no script, no font and no picture from elsewhere, a tooltip on every mark.

Each function takes plain numbers and returns one <svg>. Coordinates are in CSS pixels, widths are those at which the page shows them: text keeps its size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from longtail.paired import Interval

COLOURS = {"base": "#64748b", "choirrec": "#0f766e", "saviorrec": "#c2410c", "duet": "#6d28d9", "popularity": "#a8a29e"}
OTHERS = ("#6d28d9", "#0369a1", "#a16207")  # rankers that a later config adds
NAMES = {"base": "base", "choirrec": "ChoirRec", "saviorrec": "SaviorRec", "duet": "Duet", "popularity": "popularity"}
INK, MUTED, GRID, ZERO = "#1f2937", "#6b7280", "#e7e5e4", "#a8a29e"


def colour(ranker: str) -> str:
    return COLOURS.get(ranker) or OTHERS[sum(ranker.encode()) % len(OTHERS)]


def name(ranker: str) -> str:
    return NAMES.get(ranker, ranker)


@dataclass
class Canvas:
    """An SVG being drawn."""

    width: float
    height: float
    label: str
    parts: list[str] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, stroke: str = GRID, width: float = 1, dash: str = "") -> None:
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}" stroke-width="{width}"{dashes}/>')

    def text(self, x: float, y: float, text: str, anchor: str = "start", fill: str = MUTED, size: float = 12, weight: int = 400, rotate: float = 0) -> None:
        turned = f' transform="rotate({rotate} {x:.1f} {y:.1f})"' if rotate else ""
        style = f'font-size="{size}" font-weight="{weight}" fill="{fill}" text-anchor="{anchor}"{turned}'
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>')

    def rect(self, x: float, y: float, width: float, height: float, fill: str, tip: str = "", radius: float = 2, opacity: float = 1) -> None:
        box = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
        self.parts.append(f'<rect {box} rx="{radius}" fill="{fill}" fill-opacity="{opacity}">{_tip(tip)}</rect>')

    def dot(self, x: float, y: float, fill: str, tip: str = "", radius: float = 4.5, hollow: bool = False) -> None:
        paint = f'fill="#fff" stroke="{fill}" stroke-width="2"' if hollow else f'fill="{fill}" stroke="#fff" stroke-width="1.2"'
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" {paint}>{_tip(tip)}</circle>')

    def path(self, points: Sequence[tuple[float, float]], stroke: str, width: float = 2.2, dash: str = "") -> None:
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{joined}" fill="none" stroke="{stroke}" stroke-width="{width}" stroke-linejoin="round"{dashes}/>')

    def area(self, points: Sequence[tuple[float, float]], fill: str, opacity: float) -> None:
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polygon points="{joined}" fill="{fill}" fill-opacity="{opacity}"/>')

    def legend(self, x: float, y: float, rankers: Sequence[str]) -> None:
        for ranker in rankers:
            self.dot(x + 5, y - 4, colour(ranker), radius=4.5)
            self.text(x + 15, y, name(ranker), fill=INK)
            x += 34 + 7.2 * len(name(ranker))

    def svg(self) -> str:
        head = f'<svg viewBox="0 0 {self.width:.0f} {self.height:.0f}" width="{self.width:.0f}" role="img" aria-label="{escape(self.label)}">'
        return head + "".join(self.parts) + "</svg>"


@dataclass(frozen=True)
class Scale:
    """A linear map from values to pixels, with round ticks."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        raw = (self.high - self.low) / count
        magnitude = 10 ** math.floor(math.log10(raw))
        step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [place * step + 0.0 for place in range(first, math.floor(self.high / step + 1e-9) + 1)]


def span(values: Sequence[float], *, zero: bool = False, pad: float = 0.06) -> tuple[float, float]:
    """Lowest and highest of the values (and zero), with a margin."""
    known = [value for value in values if math.isfinite(value)] + ([0.0] if zero else [])
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    margin = (high - low) * pad or max(abs(high) * 0.1, 0.01)
    return low - margin, high + margin


def _tip(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212")


def _points(interval: Interval) -> tuple[float, float, float] | None:
    """Difference, low and high in points (hundredths); the difference stands for a missing end."""
    if interval.difference is None:
        return None
    low = interval.difference if interval.low is None else interval.low
    high = interval.difference if interval.high is None else interval.high
    return 100 * interval.difference, 100 * low, 100 * high


def differences_by_slice(rows: Sequence[tuple[str, str, Mapping[str, Interval]]], rankers: Sequence[str], what: str) -> str:
    """One line per slice (title, note), each ranker's difference from the base with its interval; hollow where the interval holds zero."""
    step, left, right, top = max(17 * len(rankers) + 17, 44), 236, 1010, 34
    canvas = Canvas(1040, top + step * len(rows) + 44, f"{what}: difference from the base by slice")
    ends = [end for _, _, found in rows for one in found.values() for end in (_points(one) or ())]
    scale = Scale(*span(ends, zero=True), left, right)
    bottom = top + step * len(rows)
    for tick in scale.ticks(8):
        canvas.line(scale(tick), top, scale(tick), bottom)
        canvas.text(scale(tick), bottom + 17, f"{tick:+g}".replace("-", "\u2212") if tick else "0", "middle")
    canvas.line(scale(0), top - 4, scale(0), bottom, ZERO, 1.6)
    canvas.legend(left, 18, rankers)
    canvas.text(right, 18, f"{what} minus base, in points (0.01), 95 % interval", "end")
    for place, (title, note, found) in enumerate(rows):
        y = top + step * place
        canvas.line(0, y, right, y)
        canvas.text(0, y + step / 2 - 1, title, fill=INK, size=13.5, weight=600)
        canvas.text(0, y + step / 2 + 15, note, size=11.5)
        for lane, ranker in enumerate(rankers):
            middle = y + step / 2 + 17 * (lane - (len(rankers) - 1) / 2)
            point = _points(found[ranker]) if ranker in found else None
            if point is None:
                canvas.text(scale(0) + 8, middle + 4, "no value here: one class only, or no row", size=11)
                continue
            canvas.line(scale(point[1]), middle, scale(point[2]), middle, colour(ranker), 2.4)
            tip = f"{name(ranker)}, {title}: {_signed(point[0])} [{_signed(point[1])}, {_signed(point[2])}]"
            canvas.dot(scale(point[0]), middle, colour(ranker), tip, 5, found[ranker].verdict == "unclear")
    return canvas.svg()


def differences_by_bin(bins: Sequence[tuple[str, int, Mapping[str, Interval]]], rankers: Sequence[str], what: str, axis: str) -> str:
    """One column per bin (title, rows), each ranker's difference from the base with its interval, joined by a line."""
    width, height, left, right, top, bottom = 505, 300, 48, 12, 34, 62
    canvas = Canvas(width, height, f"{what}: difference from the base by {axis}")
    ends = [end for _, _, found in bins for one in found.values() for end in (_points(one) or ())]
    y = Scale(*span(ends, zero=True), height - bottom, top)
    column = (width - left - right) / max(len(bins), 1)
    for tick in y.ticks():
        canvas.line(left, y(tick), width - right, y(tick))
        canvas.text(left - 7, y(tick) + 4, f"{tick:+g}".replace("-", "\u2212") if tick else "0", "end")
    canvas.line(left, y(0), width - right, y(0), ZERO, 1.6)
    canvas.legend(left, 16, rankers)
    canvas.text(width - right, 16, f"{what}, points", "end")
    for lane, ranker in enumerate(rankers):
        shift = 9 * (lane - (len(rankers) - 1) / 2)
        marks = []
        for place, (title, rows, found) in enumerate(bins):
            point = _points(found[ranker]) if ranker in found else None
            if point is None:
                continue
            x = left + column * (place + 0.5) + shift
            canvas.line(x, y(point[1]), x, y(point[2]), colour(ranker), 1.8)
            tip = f"{name(ranker)}, {title}: {_signed(point[0])} [{_signed(point[1])}, {_signed(point[2])}], {rows:,} rows"
            marks.append((x, y(point[0]), tip, found[ranker].verdict == "unclear"))
        canvas.path([(x, height_) for x, height_, _, _ in marks], colour(ranker), 1.2, "2 3")
        for x, height_, tip, hollow in marks:
            canvas.dot(x, height_, colour(ranker), tip, 4.2, hollow)
    _bin_axis(canvas, [title for title, _, _ in bins], left, column, height - bottom + 17, axis)
    return canvas.svg()


def alpha_by_activity(bins: Sequence[tuple[str, int, float, float, float]], ranker: str) -> str:
    """Mean of α_fusion by activity bin (title, rows, mean, p10, p90) with the middle 80 % of rows shaded."""
    width, height, left, right, top, bottom = 505, 300, 48, 12, 34, 62
    canvas = Canvas(width, height, "alpha_fusion by activity")
    y = Scale(0, 1, height - bottom, top)
    column = (width - left - right) / max(len(bins), 1)
    for tick in (0, 0.25, 0.5, 0.75, 1):
        canvas.line(left, y(tick), width - right, y(tick))
        canvas.text(left - 7, y(tick) + 4, f"{tick:g}", "end")
    xs = [left + column * (place + 0.5) for place in range(len(bins))]
    upper = [(x, y(p90)) for x, (_, _, _, _, p90) in zip(xs, bins, strict=True)]
    lower = [(x, y(p10)) for x, (_, _, _, p10, _) in zip(xs, bins, strict=True)]
    canvas.area(upper + lower[::-1], colour(ranker), 0.16)
    canvas.path([(x, y(mean)) for x, (_, _, mean, _, _) in zip(xs, bins, strict=True)], colour(ranker))
    for x, (title, rows, mean, p10, p90) in zip(xs, bins, strict=True):
        canvas.dot(x, y(mean), colour(ranker), f"{title} purchases: mean {mean:.3f}, middle 80 % {p10:.3f} to {p90:.3f}, {rows:,} rows")
    canvas.text(left, 16, "weight of the group channel", fill=INK)
    canvas.text(width - right, 16, "line: mean, band: middle 80 % of rows", "end")
    _bin_axis(canvas, [title for title, *_ in bins], left, column, height - bottom + 17, "purchases before the test rows")
    return canvas.svg()


def calibration_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[int]]]) -> str:
    """Reliability: predicted against actual share of positives by bin; on the diagonal is right."""
    width, height, left, right, top, bottom = 505, 300, 48, 12, 34, 48
    canvas = Canvas(width, height, "calibration")
    values = [value for predicted, actual, _ in curves.values() for value in (*predicted, *actual)]
    low, high = span(values)
    low, high = max(0.0, low), min(1.0, high)
    x, y = Scale(low, high, left, width - right), Scale(low, high, height - bottom, top)
    for tick in y.ticks():
        canvas.line(left, y(tick), width - right, y(tick))
        canvas.text(left - 7, y(tick) + 4, f"{tick:g}", "end")
        canvas.text(x(tick), height - bottom + 17, f"{tick:g}", "middle")
    canvas.line(x(low), y(low), x(high), y(high), ZERO, 1.4, "4 4")
    for ranker, (predicted, actual, rows) in curves.items():
        canvas.path([(x(p), y(a)) for p, a in zip(predicted, actual, strict=True)], colour(ranker), 1.8)
        for p, a, count in zip(predicted, actual, rows, strict=True):
            canvas.dot(x(p), y(a), colour(ranker), f"{name(ranker)}: predicted {p:.3f}, actual {a:.3f}, {count:,} rows", 3.6)
    canvas.legend(left, 16, list(curves))
    canvas.text(width - right, 16, "actual share of positives", "end")
    canvas.text((left + width - right) / 2, height - 12, "predicted probability", "middle")
    return canvas.svg()


def curves_by_epoch(curves: Mapping[str, Sequence[tuple[float, float]]], what: str) -> str:
    """One line per ranker of (epoch, value)."""
    width, height, left, right, top, bottom = 505, 260, 56, 14, 34, 46
    canvas = Canvas(width, height, f"{what} by epoch")
    epochs = sorted({epoch for points in curves.values() for epoch, _ in points})
    y = Scale(*span([value for points in curves.values() for _, value in points], pad=0.1), height - bottom, top)
    x = Scale(epochs[0] - 0.3, epochs[-1] + 0.3, left, width - right)
    for tick in y.ticks():
        canvas.line(left, y(tick), width - right, y(tick))
        canvas.text(left - 7, y(tick) + 4, f"{tick:.4g}", "end")
    for epoch in epochs[:: max(1, len(epochs) // 10)]:
        canvas.text(x(epoch), height - bottom + 17, f"{epoch:g}", "middle")
    for ranker, points in curves.items():
        canvas.path([(x(epoch), y(value)) for epoch, value in points], colour(ranker))
        for epoch, value in points:
            canvas.dot(x(epoch), y(value), colour(ranker), f"{name(ranker)}, epoch {epoch:g}: {value:.4f}", 3.8)
    canvas.legend(left, 16, list(curves))
    canvas.text((left + width - right) / 2, height - 10, "epoch", "middle")
    return canvas.svg()


def ranked_bars(counts: Sequence[int], title: str, note: str, fill: str, width: float = 330) -> str:
    """Counts from largest to smallest, beside the level that an even spread would have; empty places show as a gap at the right."""
    height, left, right, top, bottom = 170, 40, 8, 42, 22
    canvas = Canvas(width, height, title)
    ordered = sorted(counts, reverse=True)
    y = Scale(0, max(ordered[0] if ordered else 1, 1) * 1.05, height - bottom, top)
    column = (width - left - right) / max(len(ordered), 1)
    for tick in y.ticks(3):
        canvas.line(left, y(tick), width - right, y(tick))
        canvas.text(left - 6, y(tick) + 4, f"{tick:,.0f}", "end", size=11)
    for place, count in enumerate(ordered):
        gap = min(1.0, column * 0.15)
        canvas.rect(left + column * place + gap / 2, y(count), column - gap, y(0) - y(count), fill, f"place {place + 1}: {count:,}", 0 if column < 6 else 1.5)
    if ordered:
        even = sum(ordered) / len(ordered)
        canvas.line(left, y(even), width - right, y(even), INK, 1, "3 3")
    canvas.text(0, 14, title, fill=INK, size=13, weight=600)
    canvas.text(0, 30, note, size=11.5)
    canvas.text(left, height - 6, f"{len(ordered):,} places, largest first; dashed: an even spread", size=11)
    return canvas.svg()


def bars(rows: Sequence[tuple[str, float, str, str]], width: float = 505, label_width: float = 190) -> str:
    """Horizontal bars of (label, value, value in words, colour)."""
    step, longest = 32, max((value for _, value, _, _ in rows), default=0) or 1
    canvas = Canvas(width, step * len(rows) + 8, "; ".join(f"{label}: {words}" for label, _, words, _ in rows))
    for place, (label, value, words, fill) in enumerate(rows):
        y = step * place + 6
        length = (width - label_width - 110) * value / longest
        canvas.text(0, y + 15, label, fill=INK, size=13)
        canvas.rect(label_width, y, length, 21, fill, f"{label}: {words}", min(3, length / 2))
        canvas.text(label_width + length + (8 if length else 0), y + 15, words, fill=INK, size=12.5)
    return canvas.svg()


def _bin_axis(canvas: Canvas, titles: Sequence[str], left: float, column: float, y: float, axis: str) -> None:
    crowded = max((len(title) for title in titles), default=0) * 6.6 > column
    for place, title in enumerate(titles):
        x = left + column * (place + 0.5)
        if crowded:
            canvas.text(x + 4, y - 2, title, "end", size=11, rotate=-32)
        else:
            canvas.text(x, y, title, "middle", size=11.5)
    canvas.text(left + column * len(titles) / 2, canvas.height - 6 if crowded else y + 23, axis, "middle")

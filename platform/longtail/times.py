"""Times as whole microseconds since the epoch, UTC: exact, and what Arrow's timestamp[us] holds."""

from datetime import UTC, datetime

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US

CALENDAR = (-62_135_596_800_000_000, 253_402_300_799_999_999)  # the years 1 to 9999


def to_us(value: datetime) -> int:
    """Microseconds since the epoch of an aware time; exact, unlike a float of seconds."""
    delta = value - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def from_us(value: int) -> datetime:
    """The UTC time of microseconds since the epoch; beyond the calendar, its first or last instant."""
    value = min(max(value, CALENDAR[0]), CALENDAR[1])
    return datetime.fromtimestamp(value // 1_000_000, UTC).replace(microsecond=value % 1_000_000)

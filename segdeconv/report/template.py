"""How the templates of the pages are filled, and how they write numbers."""

import math

from jinja2 import Environment, PackageLoader, StrictUndefined

from segdeconv.report.examples import thumbnail


def environment() -> Environment:
    """Jinja's environment: what is put into a page is escaped, and what is missing is an error."""
    made = Environment(
        loader=PackageLoader("segdeconv.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": percent, "duration": duration, "thumbnail": thumbnail}
    return made


def percent(ratio: float | None, digits: int = 1) -> str:
    """A share as a number of percent, without the sign; a dash where there is none."""
    if ratio is None or math.isnan(ratio):
        return "\N{EN DASH}"
    return f"{100 * ratio:.{digits}f}"


def duration(seconds: float) -> str:
    """Seconds in words."""
    if math.isnan(seconds):
        return "\N{EN DASH}"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"

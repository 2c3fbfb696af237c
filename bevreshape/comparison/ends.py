"""Whether tuning has ended at an end of the values that it tried."""

from collections.abc import Mapping

from bevreshape.comparison.outcome import Candidate


def ends(candidate: Candidate) -> Mapping[str, str]:
    """Return the tuned numbers at an end of those tried, by config key: ``lowest`` or ``highest``.

    A value beyond the best one may have diverged; it was tried nevertheless, so that the best one is at no end.
    """
    found = {}
    for key, chosen in candidate.tuned.items():
        tried = {_number(one.values.get(key)) for one in candidate.tried}
        values = sorted(value for value in tried if value is not None)
        if len(values) > 1 and _number(chosen) in (values[0], values[-1]):
            found[key] = "lowest" if chosen == values[0] else "highest"
    return found


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

"""A profile's curve as text: what would be sent, and when."""

from __future__ import annotations

from collections import Counter

from . import plan
from .profiles import Profile

ROWS, WIDTH = 40, 50


def text(profile: Profile) -> str:
    """The curve in some rows, then what its seed makes of it."""
    requests = plan.planned(profile)
    step = profile.seconds / ROWS
    top = max(max(phase.rate, phase.to) for phase in profile.curve)
    due = Counter(min(int(request.due / step), ROWS - 1) for request in requests)
    lines = [profile.description, "", f"{'from':>9}  {'requests/s':>10}  {'expected':>8}  {'planned':>7}"]
    begins = 0.0
    starts = {}
    for phase in profile.curve:
        starts[begins] = phase.name
        begins += phase.seconds
    for row in range(ROWS):
        start, end = row * step, (row + 1) * step
        rate = plan.rate_at(profile.curve, start + step / 2)
        count = plan.expected(profile.curve, end) - plan.expected(profile.curve, start)
        names = [name for at, name in starts.items() if start <= at < end]
        names += [f"<{event.mark}>" for event in profile.events if start <= event.at < end]
        bar = "#" * round(WIDTH * rate / top) if top else ""
        lines.append(
            f"{start:8.1f}s  {rate:10.2f}  {count:8.1f}  {due[row]:7}  {bar:{WIDTH}} {' '.join(names)}".rstrip()
        )
    return "\n".join([*lines, "", *_totals(profile, requests)])


def _totals(profile: Profile, requests: list[plan.Planned]) -> list[str]:
    kinds = Counter(request.kind for request in requests)
    leaving = sum(request.cancel_after is not None for request in requests)
    return [
        f"{len(requests)} requests in {profile.seconds:g} s ({plan.expected(profile.curve):.1f} expected, "
        f"{profile.pacing}, "
        f"seed {profile.seed}), by at most {profile.users} users at once",
        "of them "
        + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        + f"; {sum(request.stream for request in requests)} streams, {leaving} that leave early, "
        f"{len({request.conversation for request in requests})} conversations, "
        f"{sum(request.restricted for request in requests)} restricted",
        f"about {sum(request.prompt for request in requests)} tokens of prompts, without what conversations repeat, "
        "and at "
        f"most {sum(request.output for request in requests)} of answers",
        *(f"at {event.at:g} s: {event.mark}" for event in profile.events),
    ]

"""Every request of a profile in advance: when it goes out, who sends it, and how long it is. Pure, and seeded.

Arrivals are a Poisson process whose rate follows the curve: unit-rate arrivals, mapped through the inverse of the
curve's integral (time change of a Poisson process). `even` pacing puts them at the whole numbers of that integral.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence

from .profiles import Phase, Profile, Spread

_NORMAL = statistics.NormalDist()


@dataclasses.dataclass(frozen=True)
class Planned:
    """One request. `due` is in seconds from the beginning; lengths are in tokens.

    `conversation` and `turn` (from 1) say what it follows; `shared` tokens of its prompt are those of text `text` of
    its kind. `cancel_after` is in seconds from sending, None for a client that stays. `residency` "" sends no header;
    what is `restricted` must not leave the cluster, and says so in its prompt.
    """

    number: int
    due: float
    phase: str
    kind: str
    model: str
    tenant: str
    residency: str
    restricted: bool
    stream: bool
    prompt: int
    output: int
    ignore_eos: bool
    shared: int
    text: int
    conversation: int
    turn: int
    cancel_after: float | None


def rate_at(curve: Sequence[Phase], at: float) -> float:
    """Requests a second `at` seconds after the beginning; 0 after the end."""
    for phase in curve:
        if at < phase.seconds:
            return phase.rate + (phase.to - phase.rate) * at / phase.seconds
        at -= phase.seconds
    return 0.0


def expected(curve: Sequence[Phase], until: float | None = None) -> float:
    """The curve's integral: how many requests are expected up to `until` seconds, or in all."""
    total = 0.0
    for phase in curve:
        length = phase.seconds if until is None else min(max(until, 0.0), phase.seconds)
        end = phase.rate + (phase.to - phase.rate) * (length / phase.seconds if phase.seconds else 0)
        total += length * (phase.rate + end) / 2
        until = None if until is None else until - length
    return total


def moment(curve: Sequence[Phase], count: float) -> float | None:
    """When `count` requests are expected to have come: the inverse of `expected`. None: never."""
    begins = 0.0
    for phase in curve:
        whole = phase.seconds * (phase.rate + phase.to) / 2
        if count < whole:
            slope = (phase.to - phase.rate) / phase.seconds
            # count = rate t + slope t^2 / 2; in this form it does not cancel where the slope is small.
            root = (phase.rate**2 + 2 * slope * count) ** 0.5
            return begins + (2 * count / (phase.rate + root) if phase.rate + root else 0.0)
        count -= whole
        begins += phase.seconds
    return None


def arrivals(curve: Sequence[Phase], pacing: str, chance: random.Random) -> Iterator[float]:
    """The moments at which requests are due, in seconds and in order."""
    count = 0.0
    while True:
        count += chance.expovariate(1.0) if pacing == "poisson" else 1.0
        at = moment(curve, count)
        if at is None:
            return
        yield at


def draw(spread: Spread, chance: random.Random) -> float:
    """One length or time: lognormal, within its ends by the inverse of the cut-off distribution."""
    uniform = chance.random()
    if spread.p95 <= spread.median:
        return spread.median

    def share(value: float) -> float:
        return _NORMAL.cdf(math.log(value / spread.median) / spread.sigma) if value > 0 else 0.0

    low = share(spread.least)
    high = share(spread.most) if spread.most is not None else 1.0
    inside = min(max(low + uniform * (high - low), 1e-12), 1 - 1e-12)
    value = spread.median * math.exp(spread.sigma * _NORMAL.inv_cdf(inside))
    value = max(value, spread.least)
    return value if spread.most is None else min(value, spread.most)


def planned(profile: Profile) -> list[Planned]:
    """All requests, in the order in which they are due.

    Arrivals keep the curve also where there are conversations: each arrival of a kind takes the next turn of one whose
    client has thought long enough since the turn before was due, the one that waits longest, or begins a new one.
    """
    # One stream of chance for each question, so that a profile that changes one answer keeps the others.
    when, who, what, leaves = (random.Random(f"{profile.seed}/{name}") for name in ("when", "who", "what", "leaves"))
    ends, phases = [], [phase.name for phase in profile.curve]
    for phase in profile.curve:
        ends.append((ends[-1] if ends else 0.0) + phase.seconds)
    open_: dict[str, list[tuple[float, int, int, int, str, str, int]]] = {kind.name: [] for kind in profile.kinds}
    found: list[Planned] = []
    weights = [kind.weight for kind in profile.kinds]
    conversations = 0
    for number, due in enumerate(arrivals(profile.curve, profile.pacing, when)):
        kind = who.choices(profile.kinds, weights)[0]
        waiting = open_[kind.name]
        if waiting and waiting[0][0] <= due:
            _, conversation, turn, turns, tenant, residency, text = heapq.heappop(waiting)
            turn += 1
        else:
            conversation, turn = conversations, 1
            conversations += 1
            turns = who.randint(1, kind.turns)
            tenant, residency = _one(kind.tenants, who), _one(kind.residency, who)
            text = who.randrange(kind.texts)
        if turn < turns:
            heapq.heappush(waiting, (due + kind.think, conversation, turn, turns, tenant, residency, text))
        prompt, output = round(draw(kind.prompt, what)), round(draw(kind.output, what))
        leaving = leaves.random() < kind.cancelled
        after = draw(kind.cancel_after, leaves) if kind.cancel_after else None
        found.append(
            Planned(
                number=number,
                due=due,
                phase=next((name for name, end in zip(phases, ends, strict=True) if due < end), phases[-1]),
                kind=kind.name,
                model=kind.model,
                tenant=tenant,
                residency="" if residency == "own" else residency,
                restricted=kind.restricted or residency == "cluster",
                stream=what.random() < kind.stream,
                prompt=prompt,
                output=output,
                ignore_eos=kind.ignore_eos,
                # A later turn has the shared text in what went before.
                shared=round(prompt * kind.shared) if turn == 1 else 0,
                text=text,
                conversation=conversation,
                turn=turn,
                cancel_after=after if leaving else None,
            )
        )
    return found


def _one(weights: Mapping[str, float], chance: random.Random) -> str:
    return chance.choices(list(weights), list(weights.values()))[0]


# --- what is sent ----------------------------------------------------------------------------------------------------

#: Common English words, each one token with the space before it in the tokenizers of today's models, as a rule: a
#: prompt has about as many tokens as words. What the server counted is in the report.
WORDS = (
    "the of and to in for is on that by this with you it not or be are from at as your all have new more an was we "
    "will "
    "home can us about if page my has search free but our one other do no information time they site he up may what "
    "which "
    "their news out use any there see only so his when contact here business who web also now help get view online "
    "first "
    "been would how were services some these click its like service than find price date back top people had list name "
    "just over state year day into email two health world next used go work last most music data make them should "
    "product "
    "system post her city add policy number such please available copyright support message after best software "
    "then good "
    "well where info rights public books high school through each links she review years order very privacy book items "
    "company read group need many user said does set under general research university mail full map reviews "
    "program life"
).split()


#: Stands in every restricted prompt, so that it can be found wherever it should not be.
RESTRICTED = "restricted-prompt-2f9c"


def words(count: int, seed: str) -> str:
    """`count` words, the same for the same seed."""
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def prompt(request: Planned, seed: int) -> str:
    """The text of one turn. What is shared stands first, where a prefix cache finds it."""
    shared = words(request.shared, f"{seed}/{request.kind}/{request.text}") if request.shared else ""
    own = words(max(request.prompt - request.shared, 1), f"{seed}/{request.number}")
    return f"{shared} {own} {RESTRICTED if request.restricted else ''}".strip()

"""Where a model fits, and who would have to give way for it. Decisions only; see scheduler.py for when that is worth its time."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from appliance.models.scheduler.state import ModelFacts, ResidentRunner, SchedulerState


@dataclass(frozen=True, slots=True)
class Claim:
    """Room that is kept for a model: it will take so much of these devices once these llama-servers (keys) have left."""

    alias: str
    devices: tuple[int, ...]
    need_bytes: int
    keys: tuple[int, ...] = ()


def fitting(
    facts: ModelFacts, house: SchedulerState, *, gone: Collection[int] = (), claims: Sequence[Claim] = ()
) -> tuple[int, ...] | None:
    """Give the devices that a model fits on once `gone` (keys) have left, beside what others claim. None = none.

    1. no place, now or when the claims are met       → None
    2. one device that holds it                       → of those where nothing is being loaded, else of all, the one with the most room
    3. no GPU could ever hold it, all together can    → all that have room
    4. else                                           → None
    """
    if not _has_place(facts.alias, house, gone, claims):  # 1
        return None
    free = _free(house, gone, claims)
    devices = [index for index in free if (index >= 0) == facts.on_gpu]
    margin = house.rules.margin_bytes
    need = facts.need_bytes + margin
    enough = [index for index in devices if free[index] >= need]
    if enough:  # 2
        loading = {index for one in house.residents if one.phase == "loading" for index in one.memory}
        return (max(enough, key=lambda index: (index not in loading, free[index], -index)),)
    together = [index for index in devices if free[index] > margin]
    room = sum(free[index] - margin for index in together)
    if len(together) > 1 and room >= facts.need_bytes and need > most_bytes(facts, house):  # 3
        return tuple(sorted(together))
    return None  # 4


def most_bytes(facts: ModelFacts, house: SchedulerState) -> int:
    """Give what the largest device for a model has in all."""
    return max((size for index, size in house.total.items() if (index >= 0) == facts.on_gpu), default=0)


def _has_place(alias: str, house: SchedulerState, gone: Collection[int], claims: Sequence[Claim]) -> bool:
    """Say whether one more model may be loaded, now and also when the claims are met. Replicas take one place together."""
    leaving = {key for claim in claims for key in claim.keys}
    now = {one.alias for one in house.residents if one.key not in gone}
    later = {one.alias for one in house.residents if one.key not in gone and one.key not in leaving} | {
        claim.alias for claim in claims
    }
    return all(alias in some or len(some) < house.rules.places for some in (now, later))


def _free(house: SchedulerState, gone: Collection[int], claims: Sequence[Claim]) -> dict[int, int]:
    """Give bytes by device once `gone` have left: what is there, and what the claims leave of it, whichever is less."""
    now = _freed(house, dict(house.free), gone)
    if not claims:
        return now
    later = _freed(house, dict(now), {key for claim in claims for key in claim.keys if key not in gone})
    for claim in claims:
        for device in claim.devices:
            later[device] = later.get(device, 0) - claim.need_bytes // len(claim.devices)
    return {device: min(size, later[device]) for device, size in now.items()}


def _freed(house: SchedulerState, free: dict[int, int], gone: Collection[int]) -> dict[int, int]:
    for one in house.residents:
        if one.key in gone:
            for device, size in one.memory.items():
                free[device] = min(
                    free.get(device, 0) + size, house.total.get(device, free.get(device, 0) + size)
                )
    return free


def leaving(
    facts: ModelFacts, house: SchedulerState, order: Sequence[ResidentRunner], claims: Sequence[Claim] = ()
) -> list[ResidentRunner] | None:
    """Choose who must leave for a model that does not fit: the first of `order` before the later ones, none in vain.

    None = not even all were enough.
    """
    chosen: list[ResidentRunner] = []
    for one in order:
        chosen.append(one)
        if fitting(facts, house, gone=[c.key for c in chosen], claims=claims) is not None:
            break
    else:
        return None
    for one in chosen[::-1]:
        rest = [c for c in chosen if c is not one]
        if fitting(facts, house, gone=[c.key for c in rest], claims=claims) is not None:
            chosen = rest
    return chosen


def available_bytes(facts: ModelFacts, house: SchedulerState) -> int:
    """Give the most that a model could ever find, with all gone that are not pinned: on one device, or on all GPUs that it is split over."""
    margin = house.rules.margin_bytes
    free = _freed(house, dict(house.free), {one.key for one in house.residents if not one.is_pinned})
    rooms = [size for index, size in free.items() if (index >= 0) == facts.on_gpu]
    if len(rooms) > 1 and facts.need_bytes + margin > most_bytes(facts, house):
        return margin + sum(max(0, size - margin) for size in rooms)
    return max([0, *rooms])

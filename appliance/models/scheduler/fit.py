"""Where a model fits, and what must be unloaded for it. Decisions only; scheduler.py decides when."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from appliance.models.scheduler.state import ModelFacts, ResidentRunner, SchedulerState


@dataclass(frozen=True, slots=True)
class Reservation:
    """Memory that is kept for a model.

    It will take `need_bytes` of these devices once the llama-servers with these serials are removed.
    """

    alias: str
    devices: tuple[int, ...]
    need_bytes: int
    serials: tuple[int, ...] = ()


def find_devices(
    facts: ModelFacts,
    state: SchedulerState,
    *,
    removed: Collection[int] = (),
    reservations: Sequence[Reservation] = (),
) -> tuple[int, ...] | None:
    """Return the devices that a model fits on.

    1. max_models is reached, or a model is loaded that is never loaded
       together with it, now or once the reservations are used         → None
    2. one device holds it                                             → that with the most free memory, but
                                                                       first those without a running load
    3. no GPU alone could ever hold it, all together can               → all that have memory free
    4. else                                                            → None

    Args:
        facts: The model.
        state: What is loaded.
        removed: Serials of llama-servers that are taken as removed.
        reservations: Memory that is kept for other models.
    """
    if not _is_allowed(facts.alias, state, removed, reservations):  # 1
        return None
    free = _free_bytes(state, removed, reservations)
    devices = [index for index in free if (index >= 0) == facts.on_gpu]
    margin = state.rules.margin_bytes
    need = facts.need_bytes + margin
    enough = [index for index in devices if free[index] >= need]
    if enough:  # 2
        loading = {index for one in state.residents if one.phase == "loading" for index in one.memory}
        return (max(enough, key=lambda index: (index not in loading, free[index], -index)),)
    together = [index for index in devices if free[index] > margin]
    usable = sum(free[index] - margin for index in together)
    if len(together) > 1 and usable >= facts.need_bytes and need > largest_device_bytes(facts, state):  # 3
        return tuple(sorted(together))
    return None  # 4


def largest_device_bytes(facts: ModelFacts, state: SchedulerState) -> int:
    """Return the total memory of the largest device for a model."""
    return max((size for index, size in state.total.items() if (index >= 0) == facts.on_gpu), default=0)


def _is_allowed(
    alias: str, state: SchedulerState, removed: Collection[int], reservations: Sequence[Reservation]
) -> bool:
    """Whether a model may be loaded beside the others, now and once the reservations are used.

    Replicas count as one.
    """
    leaving = {serial for kept in reservations for serial in kept.serials}
    now = {one.alias for one in state.residents if one.serial not in removed}
    later = {
        one.alias for one in state.residents if one.serial not in removed and one.serial not in leaving
    } | {kept.alias for kept in reservations}
    if not state.conflicts.get(alias, frozenset()).isdisjoint(now | later):
        return False
    return all(alias in loaded or len(loaded) < state.rules.max_models for loaded in (now, later))


def _free_bytes(
    state: SchedulerState, removed: Collection[int], reservations: Sequence[Reservation]
) -> dict[int, int]:
    """Return free bytes by device: now, or what the reservations leave, whichever is less."""
    now = _with_freed(state, dict(state.free), removed)
    if not reservations:
        return now
    leaving = {serial for kept in reservations for serial in kept.serials if serial not in removed}
    later = _with_freed(state, dict(now), leaving)
    for kept in reservations:
        for device in kept.devices:
            later[device] = later.get(device, 0) - kept.need_bytes // len(kept.devices)
    return {device: min(size, later[device]) for device, size in now.items()}


def _with_freed(state: SchedulerState, free: dict[int, int], removed: Collection[int]) -> dict[int, int]:
    """Add the memory of removed llama-servers to `free`, never beyond what a device has."""
    for one in state.residents:
        if one.serial in removed:
            for device, size in one.memory.items():
                freed = free.get(device, 0) + size
                free[device] = min(freed, state.total.get(device, freed))
    return free


def pick_evicted(
    facts: ModelFacts,
    state: SchedulerState,
    order: Sequence[ResidentRunner],
    reservations: Sequence[Reservation] = (),
) -> list[ResidentRunner] | None:
    """Choose what is unloaded for a model that does not fit.

    Args:
        facts: The model.
        state: What is loaded.
        order: The candidates, the cheapest first.
        reservations: Memory that is kept for other models.

    Returns:
        The first of `order` that suffice together, without any that is not needed; None = not even all
        suffice.
    """
    chosen: list[ResidentRunner] = []
    serials: list[int] = []
    for one in order:
        chosen.append(one)
        serials.append(one.serial)
        if find_devices(facts, state, removed=serials, reservations=reservations) is not None:
            break
    else:
        return None
    for one in chosen[::-1]:
        others = [other for other in chosen if other is not one]
        serials = [other.serial for other in others]
        if find_devices(facts, state, removed=serials, reservations=reservations) is not None:
            chosen = others
    return chosen


def max_available_bytes(facts: ModelFacts, state: SchedulerState) -> int:
    """Return the most memory that can be made free for a model, by unloading all that is not pinned.

    That is the largest device, or all GPUs together where the model is larger than each of them.
    """
    margin = state.rules.margin_bytes
    removable = {one.serial for one in state.residents if not one.is_pinned}
    free = _with_freed(state, dict(state.free), removable)
    sizes = [size for index, size in free.items() if (index >= 0) == facts.on_gpu]
    if len(sizes) > 1 and facts.need_bytes + margin > largest_device_bytes(facts, state):
        return margin + sum(max(0, size - margin) for size in sizes)
    return max([0, *sizes])

"""What markets offer, what is launched there, what runs there, and how a market says that it does not know.

Money is whole micro-dollars (`_musd`), an hour's price `_musd_per_h`; times are epoch milliseconds (`_ms`).
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from appliance.base.errors import ApplianceError, Kind, Unavailable

DEFAULT_IMAGE: Final = "nvidia/cuda:12.0.0-base-ubuntu22.04"


@dataclass(frozen=True, slots=True)
class OfferFilter:
    """Which offers are wanted; None and "" = any.

    Attributes:
        min_vram_gb: Of one GPU.
        max_price_musd_per_h: The highest price that the customer pays for the whole instance.
        gpu_model: A part of the GPU's name; case, blanks, `_` and `-` do not count.
        location: A country code, or a part of the location's name.
        min_gpus: GPUs of the instance.
        min_reliability: 0 to 1; offers whose market does not tell are left out.
        is_verified_only: Only machines that the market has verified.
    """

    min_vram_gb: float | None = None
    max_price_musd_per_h: int | None = None
    gpu_model: str = ""
    location: str = ""
    min_gpus: int = 1
    min_reliability: float | None = None
    is_verified_only: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """One instance that could be rented now.

    Attributes:
        provider: The market: `vast.ai`, `io.net`.
        id: At that market, without a prefix; `public_id` is what callers see.
        machine_id: The same for two offers of one machine; "" = the market does not tell.
        gpu_count, vram_gb: GPUs, and the memory of one of them.
        supply_musd_per_h: What the market asks of us.
        price_musd_per_h: What the customer pays: supply and markup.
        prepaid_hours: How many hours must be paid at once; 0 = billed by the second.
        reliability: 0 to 1; None = the market does not tell.
        specifications: More facts for people, ready for JSON.
    """

    provider: str
    id: str
    gpu_name: str
    gpu_count: int
    vram_gb: float
    supply_musd_per_h: int
    price_musd_per_h: int = 0
    machine_id: str = ""
    cpu_cores: float = 0.0
    ram_gb: float = 0.0
    storage_gb: float = 0.0
    location: str = ""
    is_verified: bool = False
    is_available: bool = True
    reliability: float | None = None
    prepaid_hours: int = 0
    specifications: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Launch:
    """What is to run on a rented instance.

    Attributes:
        label: How the instance is found again; unique for each attempt at creating it.
        image: The container image.
        disk_gb: The disk that is asked for.
        environ: Variables of the container; values may be secrets and are not logged.
        ports: TCP ports of the container to be reached from outside.
        onstart: A shell script that the market runs at the start; "" = none.
        command: Arguments that replace the image's own; () = the image's own.
        hours: For how long it is paid at a market that is paid ahead.
    """

    label: str
    image: str = DEFAULT_IMAGE
    disk_gb: float = 20.0
    environ: dict[str, str] = field(default_factory=dict, repr=False)
    ports: tuple[int, ...] = ()
    onstart: str = field(default="", repr=False)
    command: tuple[str, ...] = ()
    hours: int = 1


class InstanceState(Enum):
    """What a market says of an instance."""

    STARTING = "starting"  # created, loading, being provisioned
    RUNNING = "running"
    STOPPED = "stopped"  # it bills its disk
    FAILED = "failed"  # exited, offline, unknown to its host: it will not run by itself
    ENDED = "ended"  # it costs nothing any more


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance as its market describes it.

    Attributes:
        contract_id: Under which the market shows and destroys it.
        label: What we called it; "" = none.
        market_status: The market's own word.
        supply_musd_per_h: What it costs us an hour.
        paid_musd: What was paid ahead, and is not returned; 0 = it is billed by time.
        started_ms: When the market began to bill the GPU; None = it does not tell.
        host: The public address; "" = not known yet.
        ports: Port of the container → port at `host`.
    """

    provider: str
    contract_id: str
    label: str
    state: InstanceState
    market_status: str = ""
    message: str = ""
    gpu_name: str = ""
    gpu_count: int = 0
    machine_id: str = ""
    supply_musd_per_h: int = 0
    paid_musd: int = 0
    started_ms: int | None = None
    host: str = ""
    ports: dict[int, int] = field(default_factory=dict)


class MarketUnknown(Unavailable):
    """The market did not answer so that one could rely on it: nothing is known, and nothing may be concluded.

    A call that changes something may have happened or not.
    """

    default_code = "market_unknown"


class OfferGone(ApplianceError):
    """The offer cannot be rented any more; another one may be."""

    kind = Kind.CONFLICT
    default_code = "offer_gone"


class MarketRefused(ApplianceError):
    """The market refuses, clearly and for good: a wrong key, no money there, an order it does not take.

    Nothing was created or changed.
    """

    kind = Kind.UPSTREAM
    default_code = "market_refused"

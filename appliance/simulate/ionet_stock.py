"""The hardware and the locations that io.net offers in the simulation. Prices are invented."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IoHardware:
    """One kind of hardware.

    Attributes:
        musd_per_h: One GPU.
        replicas: Location's id → how many containers with one GPU there are.
    """

    id: int
    name: str
    brand: str
    max_gpus: int
    vram_gb: int
    musd_per_h: int
    replicas: dict[int, int]


@dataclass(frozen=True, slots=True)
class IoLocation:
    """A country."""

    id: int
    iso2: str
    name: str


LOCATIONS: dict[int, IoLocation] = {
    place.id: place
    for place in (
        IoLocation(1, "US", "United States"),
        IoLocation(2, "FI", "Finland"),
        IoLocation(3, "JP", "Japan"),
        IoLocation(4, "NL", "Netherlands"),
    )
}
HARDWARE: dict[int, IoHardware] = {
    ware.id: ware
    for ware in (
        IoHardware(203, "GeForce RTX 4090", "NVIDIA", 8, 24, 290_000, {1: 12, 2: 8, 3: 4}),
        IoHardware(207, "A100 80GB PCIe", "NVIDIA", 8, 80, 1_060_000, {1: 8, 4: 6}),
        IoHardware(211, "H100 80GB HBM3", "NVIDIA", 8, 80, 2_190_000, {1: 8, 2: 4}),
        IoHardware(214, "L40S", "NVIDIA", 4, 48, 690_000, {2: 6, 4: 2}),
        IoHardware(219, "H200", "NVIDIA", 8, 141, 2_990_000, {1: 2}),
        IoHardware(223, "GB200", "NVIDIA", 4, 186, 6_400_000, {}),  # sold out
    )
}

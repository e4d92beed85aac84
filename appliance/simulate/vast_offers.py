"""The offers of vast.ai in the simulation: the same ones for the same seed. Prices are invented."""

import random
from dataclasses import dataclass
from typing import Any

from appliance.base.money import to_dollars

HOURS_PER_MONTH = 720  # of the price of disks; assumed
MAX_OFFERS = 2000

# name, memory in MB, architecture capability, CUDA, micro-dollars an hour of one GPU, deep learning score
GPUS: tuple[tuple[str, int, int, float, int, float], ...] = (
    ("RTX 3060", 12288, 860, 12.8, 62_000, 11.2),
    ("RTX 3090", 24576, 860, 12.8, 147_000, 31.5),
    ("RTX 4090", 24564, 890, 12.8, 336_000, 71.8),
    ("RTX 5090", 32607, 1200, 13.0, 512_000, 118.4),
    ("A100 SXM4", 81920, 800, 12.8, 891_000, 102.0),
    ("L40S", 46068, 890, 12.8, 602_000, 79.3),
    ("H100 SXM", 81559, 900, 12.8, 1_873_000, 210.7),
    ("H200", 143771, 900, 13.0, 2_412_000, 241.9),
)
LOCATIONS = (
    "Sweden, SE",
    "Quebec, CA",
    "Texas, US",
    "California, US",
    "Czechia, CZ",
    "Taiwan, TW",
    "Germany, DE",
    "Norway, NO",
)
COUNTS = (1, 1, 2, 4, 8)
# Further fields that can be filtered, the same for every offer.
MORE_FIELDS: dict[str, Any] = {
    "bw_nvlink": 0.0,
    "cluster_id": None,
    "cpu_ghz": 2.8,
    "gpu_display_active": False,
    "gpu_max_power": 450.0,
    "gpu_max_temp": 90.0,
    "gpu_mem_bw": 935.0,
    "has_avx": 1,
    "mobo_name": "simulated",
    "pci_gen": 4.0,
    "ubuntu_version": "22.04",
    "vms_enabled": False,
}


@dataclass(frozen=True, slots=True)
class VastAsk:
    """One offer.

    Attributes:
        row: Its fields without price and state.
        gpu_musd_per_h: All its GPUs.
        disk_musd_per_gb_month: A gigabyte of disk for a month.
        is_taken: Another customer has it from the start.
    """

    id: int
    row: dict[str, Any]
    gpu_musd_per_h: int
    disk_musd_per_gb_month: int
    is_taken: bool

    @property
    def bid_musd_per_h(self) -> int:
        """The lowest bid for all its GPUs."""
        return self.gpu_musd_per_h * 6 // 10

    def disk_musd_per_h(self, disk_gb: float) -> int:
        """Return what a disk costs an hour."""
        return round(self.disk_musd_per_gb_month * disk_gb / HOURS_PER_MONTH)

    def as_row(self, *, storage_gb: float, is_rented: bool, kind: str) -> dict[str, Any]:
        """Return it as a search answers, priced with a disk.

        Args:
            storage_gb: The disk.
            is_rented: A customer has it.
            kind: `on-demand`, `bid` or `reserved`.
        """
        disk = self.disk_musd_per_h(storage_gb)
        gpu = self.bid_musd_per_h if kind == "bid" else self.gpu_musd_per_h
        total = to_dollars(gpu + disk)
        return {
            **self.row,
            "dph_base": to_dollars(gpu),
            "dph_total": total,
            "flops_per_dphtotal": round(self.row["total_flops"] / total, 3) if total else 0,
            "min_bid": to_dollars(self.bid_musd_per_h),
            "storage_cost": to_dollars(self.disk_musd_per_gb_month),
            "storage_total_cost": to_dollars(disk),
            "dlperf_per_dphtotal": round(self.row["dlperf"] / total, 3) if total else 0,
            "score": round(self.row["dlperf"] / total * self.row["reliability"], 3) if total else 0,
            "is_bid": kind == "bid",
            "rented": is_rented,
            "rentable": not is_rented,
        }


def make_offers(count: int, *, seed: int) -> dict[int, VastAsk]:
    """Return offers by their id; every seventh one is taken, every ninth one is not verified.

    Args:
        count: How many, up to MAX_OFFERS.
        seed: The same offers for the same seed.
    """
    chance = random.Random(seed)
    offers = {}
    for number in range(min(count, MAX_OFFERS)):
        name, ram_mb, capability, cuda, price, dlperf = GPUS[number % len(GPUS)]
        gpus = chance.choice(COUNTS)
        machine = 40_000 + (number - 8 if number % 24 == 8 else number)  # some machines have two offers
        ask_id = 21_000_000 + number * 13 + seed % 13
        is_verified = number % 9 != 5
        row: dict[str, Any] = {
            "id": ask_id,
            "ask_contract_id": ask_id,
            "bundle_id": ask_id + 500_000_000,
            "machine_id": machine,
            "host_id": 9_000 + machine % 97,
            "num_gpus": gpus,
            "gpu_name": name,
            "gpu_ram": ram_mb,
            "gpu_total_ram": ram_mb * gpus,
            "gpu_frac": 1.0 if gpus == 8 else gpus / 8,
            "gpu_arch": "nvidia",
            "compute_cap": capability,
            "cuda_max_good": cuda,
            "driver_version": "570.133.20",
            "cpu_arch": "amd64",
            "cpu_name": "AMD EPYC 7543 32-Core Processor",
            "cpu_cores": 64,
            "cpu_cores_effective": float(8 * gpus),
            "cpu_ram": 64_000 * gpus,
            "disk_space": float(200 * gpus + chance.randrange(0, 900)),
            "disk_bw": float(chance.randrange(800, 6000)),
            "inet_up": float(chance.randrange(100, 5000)),
            "inet_down": float(chance.randrange(200, 8000)),
            "inet_up_cost": 0.002,
            "inet_down_cost": 0.002,
            "direct_port_count": chance.choice((0, 16, 99, 250)) if number % 10 == 9 else 99,
            "pcie_bw": 24.1,
            "dlperf": round(dlperf * gpus, 2),
            "reliability": round(0.999 - 0.012 * chance.random() - (0.06 if number % 11 == 7 else 0), 5),
            "verification": "verified" if is_verified else "unverified",
            "verified": is_verified,
            "external": False,
            "static_ip": number % 3 == 0,
            "geolocation": LOCATIONS[chance.randrange(len(LOCATIONS))],
            "duration": float(86_400 * chance.randrange(2, 60)),
            "datacenter": number % 2 == 0,
            "hosting_type": number % 2,
        }
        row |= MORE_FIELDS
        row["total_flops"] = round(row["dlperf"] * 1.1, 2)
        row["reliability2"] = row["reliability"]
        gpu_price = price * gpus * chance.randrange(88, 131) // 100
        disk_price = chance.randrange(90_000, 260_000)
        offers[ask_id] = VastAsk(ask_id, row, gpu_price, disk_price, number % 7 == 3)
    return offers

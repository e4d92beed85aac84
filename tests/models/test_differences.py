"""What a reload of the table changes, in words."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.models.table.catalogue import Catalogue, LoraAdapter, Model
from appliance.models.table.differences import differences
from appliance.models.table.entries import Params, System
from appliance.models.table.sampling import RequestSettings

A, B = (Model(alias, Path(f"/m/{alias}.gguf"), Params(), "table") for alias in "ab")
OLD = Catalogue({"a": A}, System(), llama_server="/bin/one")


def with_a(**changes: Any) -> Catalogue:
    return replace(OLD, models={"a": replace(A, **changes)})


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (OLD, []),
        (replace(OLD, models={"a": A, "b": B}), ["The model b is added."]),
        (replace(OLD, models={}), ["The model a is removed."]),
        (replace(OLD, models={"b": B}), ["The model a is removed.", "The model b is added."]),
        (with_a(params=Params(n_ctx=8192)), ["The model a changes: params.n_ctx 4096 → 8192."]),
        (
            with_a(pinned=True, pooling="cls"),
            ['The model a changes: pinned false → true, pooling null → "cls".'],
        ),
        (
            with_a(lora=(LoraAdapter(Path("/l.gguf"), 0.5),)),
            ['The model a changes: lora [] → ["/l.gguf × 0.5"].'],
        ),
        (
            with_a(env=(("TOKEN", "secret"),), requests=RequestSettings({}, {"seed": 1}, "long")),
            ['The model a changes: env, force "{}" → "{\\"seed\\":1}", system_prompt.'],
        ),
        (with_a(aliases=("x",)), ['The model a changes: aliases [] → ["x"].']),
        (with_a(path=Path("/m/c.gguf")), ['The model a changes: path "/m/a.gguf" → "/m/c.gguf".']),
        (
            replace(OLD, system=System(idle_timeout_sec=60, gpu_devices=(0, 1))),
            [
                "The system changes: idle_timeout_sec 300 → 60.",
                "The system changes: gpu_devices [0] → [0,1].",
            ],
        ),
        (replace(OLD, llama_server="/bin/two"), ['The llama-server changes: "/bin/one" → "/bin/two".']),
        # LLAMA_SERVER_PATH takes precedence: nothing changes.
        (replace(OLD, system=System(llama_server_path="/bin/other")), []),
    ],
)
def test_each_difference_has_its_sentence(new: Catalogue, said: list[str]) -> None:
    assert differences(OLD, new) == said

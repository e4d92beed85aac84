"""The result of one step of the machine's preparation."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Outcome = Literal["done", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step did.

    Attributes:
        name: machine-id, gpu, shim or nat.
        outcome: done, skipped or failed.
        detail: A sentence for people.
        remedy: What to do if it failed.
        is_mandatory: The server must not start without it.
    """

    name: str
    outcome: Outcome
    detail: str
    remedy: str = ""
    is_mandatory: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name}: {self.outcome}: {self.detail}" + (f" {self.remedy}" if self.remedy else "")

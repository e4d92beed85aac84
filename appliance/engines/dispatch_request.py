"""One request for the dispatcher: its route, and what earlier attempts have shown."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from appliance.base import jsons
from appliance.base.balancing import hash_blocks
from appliance.engines.backends.contract import Backend
from appliance.engines.pool import Pool
from appliance.engines.receipts import Receipt
from appliance.engines.types import EngineRequest, RequestOptions
from appliance.engines.upstream.attempt import AttemptFailed


@dataclass(slots=True)
class DispatchRequest:
    """One request on its way to a backend.

    Attributes:
        stages: The pools in order: the first one, then those that it overflows into.
        model: By the name that backends know; None = any backend will do.
        reason: Why this route, for the receipt: model, alias, default, pinned …
        options: Where and when it may be answered.
        receipt: Gets the choice and its reason.
        deadline_s: Monotonic; no attempt and no wait goes beyond it.
        hash_prefixes: Returns the hashes of the prompt's prefixes; called only if a strategy needs them.
        tried: Names of the backends that had this request already, or must not get it.
        context_over: Only backends with more context tokens than that; 0 = any.
        is_pinned: Only the backend that `options` names.
        undecided: Failures whose fault may be the request's or the server's; None = none.
    """

    stages: list[Pool]
    model: str | None
    reason: str
    options: RequestOptions
    receipt: Receipt
    deadline_s: float
    hash_prefixes: Callable[[], list[int]] = list
    tried: set[str] = field(default_factory=set)
    context_over: int = 0
    is_pinned: bool = False
    undecided: list[AttemptFailed] | None = None

    def note_sentence(self, failure: AttemptFailed) -> bool:
        """Keep a failure that came with an engine's sentence; return whether another server said the same."""
        if not failure.sentence or failure.context is not None:  # the next one's context may be larger
            return False
        if self.undecided is None:
            self.undecided = []
        is_known = any(failure.says_the_same_as(former) for former in self.undecided)
        self.undecided.append(failure)
        return is_known

    def confirm_failures(self) -> None:
        """Let the servers know that were in doubt: another one answered the request that they failed."""
        for failure in self.undecided or ():
            if failure.on_confirmed is not None:
                failure.on_confirmed()

    def open_stages(self) -> list[Pool]:
        """Return the pools that the request may go to: a local one does not overflow."""
        return self.stages[:1] if self.options.is_local_only else self.stages

    def candidates_in(self, pool: Pool) -> list[Backend]:
        """Return the backends of `pool` that could answer if they had capacity.

        1. they serve the model     3. they are not a hosted API, if the request must stay local
        2. they were not tried yet  4. their context is large enough, or not known
        """
        serving = pool.serving(self.model)  # 1
        options, tried = self.options, self.tried
        if not (tried or self.context_over or options.context_tokens or options.is_local_only):
            return serving  # nearly every request
        over = max(self.context_over, options.context_tokens - 1)
        return [
            backend
            for backend in serving
            if backend.name not in tried  # 2
            and not (options.is_local_only and backend.is_remote)  # 3
            and (not over or not backend.context_tokens or backend.context_tokens > over)  # 4
        ]

    def candidates(self) -> Iterator[Backend]:
        """Yield the backends of every pool that could answer if they had capacity."""
        for pool in self.open_stages():
            yield from self.candidates_in(pool)


def hash_prompt_prefixes(request: EngineRequest) -> list[int]:
    """Return the hashes of a prompt's prefixes: a server that had one of them before has it in its cache.

    Returns:
        Hashes, shortest prefix first; before them that of the client's own `prompt_cache_key`, if any.
    """
    body = request.body
    key = body.get("prompt_cache_key")
    prompt = body["messages"] if "messages" in body else body.get("prompt") or body.get("input")
    hashes = hash_blocks(jsons.dumps(prompt))
    return [hash(key), *hashes] if isinstance(key, str) else hashes

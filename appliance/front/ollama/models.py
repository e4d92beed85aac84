"""The models that run here, as /api/tags, /api/ps and /api/show describe them; loading by an empty prompt.

Facts come from the model's file (the library), states from the manager.

Source: Ollama's API types and its `ollama ps`.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

from appliance.base import jsons
from appliance.base.clock import Clock, format_rfc3339
from appliance.base.errors import NoSuchModel
from appliance.front.pipeline.durations import NEVER_AFTER_S
from appliance.models.status.views import ModelManagerApi, ModelView, RunnerView
from appliance.models.table.catalogue import Model
from appliance.models.table.details import TEMPLATE, ModelDetails
from appliance.models.table.library import ModelLibrary

HOLDS_MEMORY = {"starting", "loading", "ready"}
SAMPLING_NAMES = {"max_tokens": "num_predict", "n_keep": "num_keep"}  # ours → Ollama's
NAME_WIDTH = 30  # of a parameter's name in /api/show, as Ollama writes them


class LocalModels:
    """The models of the manager's table, in Ollama's shapes.

    Args:
        library: What is known of the files; None = nothing.
    """

    def __init__(self, manager: ModelManagerApi, library: ModelLibrary | None, *, clock: Clock) -> None:
        self._manager = manager
        self._library = library
        self._clock = clock

    def has(self, alias: str) -> bool:
        """Whether the table has this model."""
        return alias in self._manager.catalogue.models

    def aliases(self, alias: str) -> tuple[str, ...]:
        """Return further names of a model, as the table has them."""
        model = self._manager.catalogue.models.get(alias)
        return model.aliases if model is not None else ()

    # ---- descriptions

    async def tags(self, aliases: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return the rows of /api/tags of those that run here, by alias.

        Returns:
            `{alias: {name, model, modified_at, size, digest, details, capabilities}}`.
        """
        views = [self._manager.model(alias) for alias in aliases if self.has(alias)]
        details = await self._details(view.alias for view in views)
        return {view.alias: _tag(view, details.get(view.alias)) for view in views}

    async def loaded(self) -> list[dict[str, Any]]:
        """Return the rows of /api/ps, the one that stays longest first; one row for all runners of a model.

        Returns:
            `[{name, model, size, digest, details, expires_at, size_vram, context_length}]`.
        """
        views = [view for view in self._manager.models() if _holding(view)]
        details = await self._details(view.alias for view in views)
        now_s = self._clock.now_s()
        stays = sorted(((_expiry_s(view, now_s), view) for view in views), key=lambda stay: -stay[0])
        return [
            {
                **_entry(view, details.get(view.alias)),
                **_memory(view),
                "expires_at": format_rfc3339(at_s),
                "context_length": _context(view),
            }
            for at_s, view in stays
        ]

    async def show(self, alias: str, *, verbose: bool) -> dict[str, Any]:
        """Return the body of /api/show.

        Args:
            alias: A model of the table.
            verbose: With the lists of the file's header (vocabularies); else they are null.

        Raises:
            NoSuchModel: The table has no such model.
            Unavailable: The file cannot be read.
        """
        view, model = self._manager.model(alias), self._manager.catalogue.models[alias]
        library = self._library if model.path is not None else None
        details = await library.details(alias) if library else None
        template = details.template if details else ""
        # The template is in a field of its own.
        info = {key: value for key, value in details.info.items() if key != TEMPLATE} if details else {}
        if verbose and library:
            info |= await library.lists(alias)
        parameters = _parameters(model, view, threads=self._manager.catalogue.system.cpu_threads)
        out = {
            "modelfile": _modelfile(model, template, parameters),
            "parameters": "\n".join(parameters),
            "template": template,
            "model_info": info,
            **_facts(view, details),
        }
        return out | ({"license": details.license} if details and details.license else {})

    async def _details(self, aliases: Iterable[str]) -> dict[str, ModelDetails]:
        return await self._library.every(aliases) if self._library else {}

    # ---- loading

    async def touch(self, alias: str, keep_alive_s: float | None) -> float:
        """Unload the model if `keep_alive_s` is 0, else load it.

        Returns:
            The seconds that loading took; 0 = it was loaded before, or is unloaded now.

        Raises:
            NoSuchModel: The table has no such model.
            ApplianceError: What ModelManagerApi.load raises.
        """
        try:
            if keep_alive_s == 0:
                await self._manager.eject(alias)
                return 0.0
            began_s, was_ready = self._clock.monotonic_s(), self._manager.model(alias).status == "ready"
            await self._manager.load(alias, keep_alive_s=keep_alive_s)
        except NoSuchModel:
            raise not_found(alias) from None
        return 0.0 if was_ready else self._clock.monotonic_s() - began_s


def not_found(name: str) -> NoSuchModel:
    """Return the error of an unknown model, with Ollama's text."""
    return NoSuchModel(f"model '{name}' not found", param="model")


# ---- shapes


def _tag(view: ModelView, details: ModelDetails | None) -> dict[str, Any]:
    return _entry(view, details) | _facts(view, details)


def _entry(view: ModelView, details: ModelDetails | None) -> dict[str, Any]:
    """Return what /api/tags and /api/ps share."""
    return {
        "name": view.alias,
        "model": view.alias,
        "size": details.size_bytes if details else view.size_bytes,
        "digest": _digest(view, details),
        "details": _details(details),
    }


def _facts(view: ModelView, details: ModelDetails | None) -> dict[str, Any]:
    """Return what /api/tags and /api/show share."""
    capabilities = list(details.capabilities) if details else ["completion"]
    return {
        "modified_at": format_rfc3339(details.modified_s if details else view.updated_at_s),
        "details": _details(details),
        "capabilities": capabilities,
    }


def _digest(view: ModelView, details: ModelDetails | None) -> str:
    """Return the file's digest; until it is computed a substitute: clients shorten it without a check."""
    if details and details.digest:
        return details.digest
    state = f"{view.path}:{details.size_bytes}:{details.modified_s}" if details else str(view.path)
    return hashlib.sha256(state.encode()).hexdigest()


def _details(details: ModelDetails | None) -> dict[str, Any]:
    if details is None:
        return {
            "parent_model": "",
            "format": "gguf",
            "family": "",
            "families": [],
            "parameter_size": "",
            "quantization_level": "unknown",
        }
    out: dict[str, Any] = {
        "parent_model": "",
        "format": details.format,
        "family": details.architecture,
        "families": list(details.families),
        "parameter_size": details.parameter_label,
        "quantization_level": details.quantization or "unknown",
    }
    numbers = {"context_length": details.context_tokens, "embedding_length": details.embedding_length}
    return out | {name: number for name, number in numbers.items() if number}


def _holding(view: ModelView) -> list[RunnerView]:
    return [runner for runner in view.runners if runner.status in HOLDS_MEMORY]


def _memory(view: ModelView) -> dict[str, int]:
    """Return `size`, all its memory (estimated while it loads), and `size_vram`, its memory on GPUs."""
    runners = _holding(view)
    total = sum(max(runner.memory_bytes, sum(taken for _, taken in runner.devices)) for runner in runners)
    on_gpus = sum(taken for runner in runners for index, taken in runner.devices if index >= 0)
    return {"size": total or view.estimate_bytes, "size_vram": on_gpus}


def _expiry_s(view: ModelView, now_s: float) -> float:
    """Return when its last runner is unloaded; for never so late that `ollama ps` prints Forever."""
    never_s = now_s + NEVER_AFTER_S
    return max(
        never_s if runner.expires_at_s is None else min(runner.expires_at_s, never_s)
        for runner in _holding(view)
    )


def _context(view: ModelView) -> int:
    """Return the context of one request in tokens, as far as it is known."""
    return view.request_tokens or view.context_tokens // max(1, view.slots)


def _parameters(model: Model, view: ModelView, *, threads: int) -> list[str]:
    """Return the lines of `parameters`: how the model is run here, with Ollama's names."""
    params = model.params
    if model.engine is not None:
        return [f"{'num_ctx':<{NAME_WIDTH}} {view.context_tokens}"] if view.context_tokens else []
    values = {
        "num_ctx": _context(view),
        "num_batch": params.batch_override or params.n_batch,
        "num_gpu": params.n_gpu_layers,
        "num_thread": threads,
        "rope_frequency_base": params.rope_freq_base,
    }
    sampling = {**model.requests.defaults, **model.requests.force}
    values |= {
        SAMPLING_NAMES.get(name, name): value
        for name, value in sampling.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return [
        f"{name:<{NAME_WIDTH}} {value:g}" if isinstance(value, float) else f"{name:<{NAME_WIDTH}} {value}"
        for name, value in values.items()
        if value is not None
    ]


def _modelfile(model: Model, template: str, parameters: list[str]) -> str:
    """Return a Modelfile for this model; with the file's name only, not the folder."""
    how = "by a command of its own" if model.engine is not None else "from its file"
    lines = [f"# {model.alias} runs here {how}", f"FROM {model.path.name if model.path else model.alias}"]
    if template:
        lines.append(f"TEMPLATE {_quoted(template)}")
    return "\n".join([*lines, *(f"PARAMETER {' '.join(line.split())}" for line in parameters)]) + "\n"


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"""' not in text else jsons.dumps_text(text)

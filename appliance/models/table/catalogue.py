"""The models of this machine as they are to be run: of the table, of a folder, and those that were pulled."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from appliance.base.logs import is_secret_variable, secrets_of_address, secrets_of_words
from appliance.models.table.engine import EngineCommand
from appliance.models.table.entries import Api, Params, Pooling, System
from appliance.models.table.groups import Group
from appliance.models.table.hooks import NO_HOOKS, Hooks
from appliance.models.table.sampling import NO_REQUEST_SETTINGS, RequestSettings

LATEST = ":latest"  # the tag of a name without one, for Ollama


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """An adapter that is loaded with its model.

    Attributes:
        scale: How strongly it applies, 0 = only if a request wants it.
        name: Of one that is a model of its own for requests (`engines/lora/managed_host.py`); "" = of the
            table.
    """

    path: Path
    scale: float = 1.0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """One model as it is to be run. Paths are absolute.

    Attributes:
        origin: The table, the folder (MODEL_DIR), or a pull.
        replicas: llama-servers that may run it at the same time.
        pinned: Never unloaded, neither for other models nor when idle.
        path: The model's file; None = only the command of its engine knows.
        draft_model_path: A small model that drafts tokens, which this one only verifies.
        mmproj_path: The projector that turns images into embeddings for the model.
        reranking: False = as its file says, as pooling None.
        engine: What runs it; None = a llama-server.
        max_concurrency: Requests that each server of it gets at a time; None = as many as it has slots.
        aliases: Further names of it.
        requests: What is changed in requests for it.
        extra_args: Further arguments for llama-server.
        env: Variables of its llama-servers, as (name, value).
        idle_timeout_s: Seconds without a request after which it is unloaded; negative = never, None = as the
            system says.
        preload: It is loaded at the start.
        hooks: Commands before a load and after an unload.
    """

    alias: str
    path: Path | None
    params: Params
    origin: Literal["table", "folder", "pulled"]
    replicas: int = 1
    pinned: bool = False
    lora: tuple[LoraAdapter, ...] = ()
    draft_model_path: Path | None = None
    mmproj_path: Path | None = None
    reranking: bool = False
    pooling: Pooling | None = None
    # Not in repr: records of earlier loads are found by it (manager/model_file.py).
    engine: EngineCommand | None = field(default=None, repr=False)
    max_concurrency: int | None = field(default=None, repr=False)
    aliases: tuple[str, ...] = field(default=(), repr=False)
    requests: RequestSettings = field(default=NO_REQUEST_SETTINGS, repr=False)
    extra_args: tuple[str, ...] = field(default=(), repr=False)
    env: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    idle_timeout_s: int | None = field(default=None, repr=False)
    preload: bool = field(default=False, repr=False)
    hooks: Hooks = field(default=NO_HOOKS, repr=False)

    def as_started(self) -> "Model":
        """Return the same model without what a running llama-server need not be restarted for."""
        return replace(
            self,
            replicas=1,
            pinned=False,
            aliases=(),
            requests=NO_REQUEST_SETTINGS,
            idle_timeout_s=None,
            preload=False,
            hooks=NO_HOOKS,
        )

    @property
    def files(self) -> dict[str, Path]:
        """Every file of the model, by its key in the table."""
        found = {
            "model_path": self.path,
            "draft_model_path": self.draft_model_path,
            "mmproj_path": self.mmproj_path,
            **{f"lora.{number}.path": one.path for number, one in enumerate(self.lora)},
        }
        return {key: path for key, path in found.items() if path is not None}


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All models by alias, and how they are run.

    Attributes:
        groups: By name.
        conflicts: By alias, the models that are never loaded together with one; only where there are some.
    """

    models: Mapping[str, Model]
    system: System = field(default_factory=System)
    api: Api = field(default_factory=Api)
    llama_server: str = ""  # "" = the one in PATH
    groups: Mapping[str, Group] = field(default_factory=dict)
    conflicts: Mapping[str, Set[str]] = field(
        default_factory=dict, compare=False
    )  # they follow from the rest

    def name_of(self, name: str) -> str | None:
        """Return the name of the model that has this name or alias; None = there is none."""
        if name in self.models:
            return name
        return next((model.alias for model in self.models.values() if name in model.aliases), None)

    def secrets(self) -> list[str]:
        """List the secrets of models, as far as they are known: by the names of variables and arguments.

        1. values of variables whose names say so, as HF_TOKEN, and passwords in addresses
        2. the same of command lines: `--hf-token VALUE`
        """
        found: list[str] = []
        for model in self.models.values():
            for name, value in model.env:  # 1
                found += [value] if is_secret_variable(name) else secrets_of_address(value)
            engine = model.engine.words if model.engine is not None else ()
            for words in (engine, model.extra_args, model.hooks.before_load, model.hooks.after_unload):  # 2
                found += secrets_of_words(words)
        return [one for one in found if not one.isdigit() and not one.startswith("$")]

    def preloaded(self) -> list[str]:
        """List the names of the models that are loaded at the start: the system's first."""
        if "*" in self.system.preload_models:
            return list(self.models)
        named = [self.name_of(name) or name for name in self.system.preload_models]
        own = [model.alias for model in self.models.values() if model.preload]
        return list(dict.fromkeys([*named, *own]))


def is_other_latest(name: str, owners: Mapping[str, str]) -> bool:
    """Whether a name ends with `:latest`, and is of another model than the same name without it.

    Args:
        name: Of a model, or an alias.
        owners: The model of each name.
    """
    plain = name.removesuffix(LATEST)
    return plain != name and plain in owners and owners[plain] != owners[name]


def latest_text(name: str, owners: Mapping[str, str]) -> str:
    """Say in sentences what is wrong with such a name."""
    plain = name.removesuffix(LATEST)
    return (
        f"Ollama's clients take {plain!r} and {name!r} for one model; here {plain!r} is {owners[plain]!r}, "
        f"and {name!r} is {owners[name]!r}. Take another name for one of them."
    )

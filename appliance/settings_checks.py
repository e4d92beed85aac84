"""Checks that concern settings of several packages.

Ports used twice, ports open to other machines, a worker beside an open control API.
"""

from collections.abc import Sequence

from appliance.base.balancing import STRATEGIES
from appliance.base.config_file import ConfigFile
from appliance.base.settings import HIDDEN, Problem
from appliance.control.guard import problems as control_problems
from appliance.control.settings import ControlSettings
from appliance.engines.aliases import ModelNames
from appliance.engines.lora.plan import Adapter
from appliance.engines.settings import EngineSettings
from appliance.engines.specs import FleetSpec
from appliance.front.pipeline.origins import is_loopback
from appliance.front.settings import FrontSettings, split_keys
from appliance.host.settings import HostSettings
from appliance.models.settings import ModelSettings
from appliance.models.table.catalogue import LATEST, Catalogue, is_other_latest, latest_text

SHOWN_MODELS = 20


def check_together(
    host: HostSettings,
    models: ModelSettings,
    engines: EngineSettings,
    front: FrontSettings,
    control: ControlSettings,
    *,
    has_accounts: bool = False,
) -> list[Problem]:
    """Return the problems that concern settings of several packages; some are warnings.

    With accounts no port is open that needs a key: where none are set, those of users are asked for.
    """
    open_ports = [] if has_accounts else [*_open_sidecar_port(front), *_open_http_port(front)]
    return [
        *control_problems(control),
        *_strategy(engines),
        *_shared_ports(models, front, control),
        *_open_status_port(models),
        *_open_control(host, control),
        *_code_without_worker(host),
        *open_ports,
    ]


def check_default_model(engines: EngineSettings, fleet: FleetSpec, catalogue: Catalogue) -> list[Problem]:
    """Warn of a DEFAULT_MODEL that cannot be there.

    1. a server lists its models itself               → nothing is known of them
    2. the hosted API or the demo engine, not strict  → they answer any name
    3. otherwise                                      → it must be the name or an alias of a configured model
    """
    wanted = engines.default_model
    is_known = all(spec.models for spec in fleet.backends)  # 1
    has_hosted = bool(engines.novita_api_key.get_secret_value())
    is_other = has_hosted or not (fleet.backends or catalogue.models)
    if not wanted or not is_known or (is_other and not engines.model_strict):  # 2
        return []
    known = [*catalogue.models, *(name for spec in fleet.backends for name in spec.models)]  # 3
    if is_other and _hosted_names(engines).matches(wanted):
        return []
    names = {*known, *(alias.partition("=")[0] for alias in engines.model_aliases)}
    names |= {alias for model in catalogue.models.values() for alias in model.aliases}
    if not names.isdisjoint((wanted, wanted.removesuffix(":latest"))):
        return []
    shown = ", ".join([*known, *([engines.public_model] if is_other else [])][:SHOWN_MODELS])
    remedy = (
        "No model that is configured has this name: requests that name no model get 404 until one has it. "
        f"Configured: {shown}."
    )
    return [Problem("DEFAULT_MODEL", wanted, "the name or an alias of a model", remedy, is_fatal=False)]


def check_aliases(engines: EngineSettings, fleet: FleetSpec, catalogue: Catalogue) -> list[Problem]:
    """Warn of names in MODEL_ALIASES that differ from another model's name by `:latest` alone."""
    pairs = [
        (name, model)
        for name, equals, model in (one.partition("=") for one in engines.model_aliases)
        if equals
    ]
    owners = dict(pairs)
    owners |= {alias: name for name, model in catalogue.models.items() for alias in model.aliases}
    owners |= {name: name for spec in fleet.backends for name in spec.models}
    owners |= {name: name for name in catalogue.models}
    names = dict.fromkeys(one for name, _ in pairs for one in (name, f"{name}{LATEST}") if one in owners)
    allowed = "a name that no other model has"
    return [
        Problem("MODEL_ALIASES", one, allowed, latest_text(one, owners), is_fatal=False)
        for one in names
        if is_other_latest(one, owners)
    ]


def check_adapter_names(
    config: ConfigFile, adapters: Sequence[Adapter], catalogue: Catalogue
) -> list[Problem]:
    """Return the adapters of the configuration file that have the name of a model that runs here."""
    return [
        config.problem_at("adapters", f"{one.name!r} is the name of a model here. Choose another one.")
        for one in adapters
        if catalogue.name_of(one.name) is not None
    ]


def _hosted_names(engines: EngineSettings) -> ModelNames:
    aliases = [alias for alias in engines.model_aliases if "=" not in alias]
    return ModelNames(upstream=engines.upstream_base_model, public=engines.public_model, aliases=aliases)


def is_open_host(host: str) -> bool:
    """Whether an address to listen on is reachable from other machines."""
    return not is_loopback("127.0.0.1" if host == "localhost" else host)


def _strategy(engines: EngineSettings) -> list[Problem]:
    if engines.lb_strategy in STRATEGIES:
        return []
    known = ", ".join(STRATEGIES)
    remedy = f"There is no such strategy; round_robin is used. Known: {known}."
    return [Problem("LB_STRATEGY", engines.lb_strategy, known, remedy, is_fatal=False)]


def _shared_ports(models: ModelSettings, front: FrontSettings, control: ControlSettings) -> list[Problem]:
    """Find ports that two interfaces would listen on; each is reported for the later variable."""
    ports: dict[str, int | None] = {
        "PROXY_PORT": front.proxy_port,
        "CONTROL_PORT": control.control_port if control.control else None,
        "STATUS_PORT": models.status_port,
        "SIDECAR_PORT": front.sidecar_port,
    }
    names = list(ports)
    return [
        Problem(
            variable,
            str(ports[variable]),
            f"another port than {other}",
            f"{other} is {ports[other]}, too. Change one of them.",
        )
        for number, variable in enumerate(names)
        for other in names[:number]
        if ports[variable] is not None and ports[variable] == ports[other]
    ]


def _code_without_worker(host: HostSettings) -> list[Problem]:
    if host.worker or host.worker_command or not host.code.get_secret_value():
        return []
    remedy = (
        "No worker is started: CODE is a worker's registration code, and neither WORKER nor WORKER_COMMAND "
        "is set. Set WORKER=kuzco, or unset CODE."
    )
    return [Problem("CODE", HIDDEN, "a code, with WORKER or WORKER_COMMAND", remedy, is_fatal=False)]


def _open_http_port(front: FrontSettings) -> list[Problem]:
    if not is_open_host(front.proxy_host) or split_keys(front.appliance_api_keys):
        return []
    remedy = (
        f"Port {front.proxy_port} is open: every client that reaches it can use the models and spend the "
        "hosted key's credit. Set APPLIANCE_API_KEYS, or publish the port on 127.0.0.1 only."
    )
    return [Problem("PROXY_HOST", front.proxy_host, "any address", remedy, is_fatal=False)]


def _open_sidecar_port(front: FrontSettings) -> list[Problem]:
    is_closed = front.sidecar_port is None or not is_open_host(front.sidecar_host)
    if is_closed or split_keys(front.appliance_api_keys):
        return []
    remedy = (
        f"Port {front.sidecar_port} is open without a key: every client that reaches it can read the "
        "engine's metrics. Changes are for callers on this machine. Set APPLIANCE_API_KEYS."
    )
    return [Problem("SIDECAR_HOST", front.sidecar_host, "any address", remedy, is_fatal=False)]


def _open_status_port(models: ModelSettings) -> list[Problem]:
    if models.status_port is None or not is_open_host(models.status_host):
        return []
    remedy = (
        f"Port {models.status_port} is open: every client that reaches it sees which models there are and "
        "how busy they are. Set STATUS_HOST=127.0.0.1, or publish the port on 127.0.0.1 only."
    )
    return [Problem("STATUS_HOST", models.status_host, "any address", remedy, is_fatal=False)]


def _open_control(host: HostSettings, control: ControlSettings) -> list[Problem]:
    has_worker = bool(host.worker or host.worker_command)
    is_open = control.control and control.control_port and not control.control_token.get_secret_value()
    if not (has_worker and is_open):
        return []
    remedy = (
        "A worker runs beside a control API without a token: it could control the appliance, and send the "
        "hosted key elsewhere by a reload. Set CONTROL_TOKEN or CONTROL_TOKEN_FILE, or CONTROL=0."
    )
    return [Problem("CONTROL_TOKEN", "", "a secret", remedy, is_fatal=False)]

"""The models that were pulled: a small index in the folder of downloads, read at each start and reload.

The files are below that folder and named relative to it, so that the folder can be moved.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.files import write_atomic

INDEX = "pulled.json"


@dataclass(frozen=True, slots=True)
class PulledModel:
    """One pulled model. Paths are absolute.

    Attributes:
        alias: The name it was pulled by.
        folder: All that belongs to it, and to nothing else.
    """

    alias: str
    source: str
    folder: Path
    path: Path
    mmproj_path: Path | None = None
    pulled_at_s: float = 0.0


def read_pulled(home: Path) -> tuple[list[PulledModel], str]:
    """Read the index of the folder `home` (blocks).

    Returns:
        (models, what is wrong with the index or ""); rows that cannot be used are left out.
    """
    try:
        rows = jsons.loads((home / INDEX).read_bytes())["models"]
        found = [_parse_row(home, str(alias), row) for alias, row in rows.items()]
    except FileNotFoundError:
        return [], ""
    except OSError as exc:
        return [], f"{INDEX} cannot be read: {exc.strerror or exc}. Until then, pulled models are missing."
    except (jsons.InvalidJson, KeyError, TypeError, AttributeError, ValueError):
        return [], f"{INDEX} is damaged. Remove it, and pull the models again; what was downloaded is used."
    return [one for one in found if one is not None], ""


def _parse_row(home: Path, alias: str, row: Any) -> PulledModel | None:
    """Parse a row; None = a path of it leads out of `home`."""
    paths = {key: home / str(row[key]) for key in ("folder", "path", "mmproj_path") if row.get(key)}
    leads_out = any(".." in path.parts or not path.is_relative_to(home) for path in paths.values())
    if leads_out or paths["folder"] == home:
        return None
    return PulledModel(
        alias,
        str(row["source"]),
        paths["folder"],
        paths["path"],
        paths.get("mmproj_path"),
        float(row["pulled_at_s"]),
    )


def add_pulled(home: Path, model: PulledModel) -> None:
    """Put a model into the index, in the place of one of the same name (blocks). May raise OSError."""
    _change(home, lambda models: models.update({model.alias: model}))


def remove_pulled(home: Path, alias: str) -> None:
    """Take a model out of the index; its files stay (blocks). May raise OSError."""
    _change(home, lambda models: models.pop(alias, None))


def _change(home: Path, change: Callable[[dict[str, PulledModel]], Any]) -> None:
    models = {one.alias: one for one in read_pulled(home)[0]}
    change(models)

    def inside(path: Path | None) -> str | None:
        return path.relative_to(home).as_posix() if path else None

    write_atomic(
        home / INDEX,
        jsons.dumps(
            {
                "models": {
                    one.alias: {
                        "source": one.source,
                        "folder": inside(one.folder),
                        "path": inside(one.path),
                        "mmproj_path": inside(one.mmproj_path),
                        "pulled_at_s": one.pulled_at_s,
                    }
                    for one in models.values()
                }
            }
        ),
    )

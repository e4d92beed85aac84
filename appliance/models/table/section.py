"""The base of all sections of the model table."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of the file: no unknown key, and no change after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

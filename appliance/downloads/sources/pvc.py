"""pvc://a/b and pvc:///a/b: the mounted folder /a/b, which must be below a folder that may be read."""

from pathlib import Path

from appliance.base.errors import Invalid
from appliance.downloads.sources.contract import SourceContext
from appliance.downloads.sources.disk import Disk


class Pvc(Disk):
    """A mounted folder."""

    scheme = "pvc"

    def __init__(self, context: SourceContext) -> None:
        path = context.address.strip("/")
        if not path or "\0" in path or ".." in path.split("/"):
            raise Invalid(
                "A pvc:// source must be the path of a mounted folder, such as pvc://data/models/llama.",
                param="source",
            )
        super().__init__(Path("/") / path, context.folders, pinned=f"pvc://{path}", may_be_file=False)

"""file:///a/b: a file or folder of this machine, where the operator allows it."""

from pathlib import Path
from urllib.parse import unquote

from appliance.base.errors import Invalid
from appliance.downloads.sources.contract import SourceContext
from appliance.downloads.sources.disk import Disk


class File(Disk):
    """A file or folder of this machine."""

    scheme = "file"

    def __init__(self, context: SourceContext) -> None:
        path = unquote(context.address)
        if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
            raise Invalid(
                "A file:// source must be an absolute path, such as file:///data/models/llama.gguf.",
                param="source",
            )
        super().__init__(Path(path), context.folders, pinned=f"file://{path}", may_be_file=True)

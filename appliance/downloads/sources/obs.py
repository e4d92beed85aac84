"""obs://bucket/prefix: Huawei's store, which speaks S3's protocol at an `endpoint` of its own."""

from appliance.downloads.sources.bucket import Bucket
from appliance.downloads.sources.contract import SourceContext


class Obs(Bucket):
    """A prefix of a bucket of Huawei's store."""

    scheme = "obs"

    def __init__(self, context: SourceContext) -> None:
        super().__init__(context, scheme=self.scheme, needs_endpoint=True)

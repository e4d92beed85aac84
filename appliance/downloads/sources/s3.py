"""s3://bucket/prefix: Amazon's store, or whatever speaks its protocol at `endpoint`."""

from appliance.downloads.sources.bucket import Bucket
from appliance.downloads.sources.contract import SourceContext


class S3(Bucket):
    """A prefix of a bucket of Amazon's, or of a store with the same protocol."""

    scheme = "s3"

    def __init__(self, context: SourceContext) -> None:
        super().__init__(context, scheme=self.scheme)

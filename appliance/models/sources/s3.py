"""s3://bucket/prefix: Amazon's store, or whatever speaks its protocol at `endpoint`."""

from appliance.models.sources.bucket import Bucket
from appliance.models.sources.contract import Errand


class S3(Bucket):
    scheme = "s3"

    def __init__(self, errand: Errand) -> None:
        super().__init__(errand, scheme=self.scheme)

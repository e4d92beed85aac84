"""obs://bucket/prefix: Huawei's store, which speaks S3's protocol at an `endpoint` of its own."""

from appliance.models.sources.bucket import Bucket
from appliance.models.sources.contract import Errand


class Obs(Bucket):
    scheme = "obs"

    def __init__(self, errand: Errand) -> None:
        super().__init__(errand, scheme=self.scheme, needs_endpoint=True)

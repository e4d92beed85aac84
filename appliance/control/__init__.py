"""The gRPC door: the same objects as HTTP, for an orchestrator.

settings · parts (what it is given) · server · guard (token, deadlines, errors) · servicer · convert · errors ·
v1/ (generated from protos/appliance/control/v1, not committed)
"""

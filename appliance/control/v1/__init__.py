"""Messages and stubs of `appliance.control.v1`, generated from protos/appliance/control/v1 by protos/generate.py."""

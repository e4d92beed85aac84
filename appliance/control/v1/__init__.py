"""The service `appliance.control.v1`, generated from protos/appliance/control/v1 by protos/generate.py.

Modules:
    control_pb2: the messages.
    control_pb2_grpc: the stub of clients and the base of servicers.
"""

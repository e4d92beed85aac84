"""The service `gpuproxy.GPUProxyService`, with the messages of aiserve-gpuproxyd's clients.

Each call is the HTTP address of the same meaning: access, limits and refusals are decided in one place.

Modules:
    answers: the answer of an HTTP address, and its failure as an error.
    gpuproxy_pb2: the messages, generated from protos/appliance/control/gpuproxy.
    gpuproxy_pb2_grpc: the stub of clients and the base of servicers, likewise.
    server: where it listens.
    servicer: the calls.
"""

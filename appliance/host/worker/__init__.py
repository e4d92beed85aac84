"""The third-party worker CLI inside the container.

Modules:
    guard: a small program between us and the worker, so that nothing of the worker outlives either.
    output: the worker's output, limited in lines and bytes per second.
    restarts: when a worker that exited is started again.
    worker: starts, watches, restarts and stops the worker.
"""

"""Gunicorn's gthread worker, taking a connection only when it has a thread for it.

The stock worker takes `worker_connections` connections, idle or not, whatever its threads are at.
With many, requests queue unseen behind its busy threads while other workers are free and the
listen backlog is empty. With few, idle connections that nginx keeps open use them up, and a worker
with nothing to do takes no more requests. Here idle connections do not count: nginx keeps its
connections open, and what is too much waits in the backlog, for whichever worker is free first.
"""

from gunicorn.workers.gthread import ThreadWorker


class FreeThreadWorker(ThreadWorker):
    """A gthread worker whose limit is its threads."""

    @property
    def worker_connections(self) -> int:
        """How many connections may be open before no more are accepted."""
        return self.cfg.threads + len(self.keepalived_conns) + len(self.pending_conns)

    @worker_connections.setter
    def worker_connections(self, value: int) -> None:
        """Leave the setting to its other use, the number of idle connections to keep."""

"""gunicorn's gthread worker, accepting a connection only when a thread is free for it.

The stock worker accepts up to `worker_connections` connections, idle ones included, however busy
its threads are. If that number is high, requests queue unseen behind its busy threads while other
workers are free and the listen backlog is empty. If it is low, idle connections that nginx keeps
open use it up, and a worker with free threads accepts no more requests. This worker does not count
idle connections. So nginx can keep its connections open, and further requests wait in the backlog
for the first worker that is free.
"""

from gunicorn.workers.gthread import ThreadWorker


class FreeThreadWorker(ThreadWorker):
    """A gthread worker that accepts as many requests as it has threads."""

    @property
    def worker_connections(self) -> int:
        """The number of open connections above which the worker accepts no more."""
        return self.cfg.threads + len(self.keepalived_conns) + len(self.pending_conns)

    @worker_connections.setter
    def worker_connections(self, value: int) -> None:
        """Ignore the setting here; gunicorn also uses it to limit the idle connections."""

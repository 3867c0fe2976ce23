"""The tick app in a program that gevent has patched: its threads are greenlets, and there is one real one."""

from gevent import monkey

monkey.patch_all()

from tests.support.apps.tick_app import app, fail, tick  # noqa: E402 -- what is imported before is not patched

__all__ = ["app", "fail", "tick"]

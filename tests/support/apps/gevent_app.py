"""Tick app in a program patched by gevent: its threads are greenlets in one real thread."""

from gevent import monkey

monkey.patch_all()

from tests.support.apps.tick_app import app, fail, tick  # noqa: E402 -- only later imports are patched

__all__ = ["app", "fail", "tick"]

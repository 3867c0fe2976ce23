"""Events that a test receives."""

from typing import TypeVar

from ha_beat import events

E = TypeVar("E", bound=events.Event)


class EventLog(list[events.Event]):
    """Every event, in order. Pass its `append` where an emitter is expected."""

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self if isinstance(event, kind)]

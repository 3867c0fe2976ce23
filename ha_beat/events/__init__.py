"""Events of a replica, as frozen data.

The code in which something happens emits an event and knows neither the log, the metrics nor the signals, which
subscribe. ``reason`` is a code of :mod:`ha_beat.reasons`; ``detail`` is free text, mostly of a foreign exception.
"""

from ha_beat.events.base import *
from ha_beat.events.dispatch import *
from ha_beat.events.election import *
from ha_beat.events.health import *
from ha_beat.events.requests import *

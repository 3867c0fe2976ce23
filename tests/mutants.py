"""Guards of the package taken out, by replacing text in its sources: what a test that claims to watch a guard has to
notice.

In this process `MUTANTS[name].apply(monkeypatch.setattr)`. In another beat: `tests.support.apps.mutated_app`, with
the name in `APP_MUTANT`.
"""

from __future__ import annotations
import __future__

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ha_beat.store import scripts as redis_scripts

SetAttribute = Callable[[Any, str, Any], object]


@dataclass(frozen=True)
class Mutant:
    """Source text to be replaced. `where` is `lua:<script>` or `<module>:<function or Class.method>`."""

    where: str
    old: str
    new: str

    def apply(self, set_attribute: SetAttribute = setattr) -> None:
        """Raises LookupError where the text is not (or no longer) there: the mutant has to follow the source."""
        kind, _, name = self.where.partition(":")
        if kind == "lua":
            self._apply_to_script(name, set_attribute)
        else:
            self._apply_to_function(kind, name, set_attribute)

    def _replaced(self, source: str) -> str:
        if source.count(self.old) != 1:
            raise LookupError(f"{self.where} holds {source.count(self.old)} times: {self.old}")
        return source.replace(self.old, self.new)

    def _apply_to_script(self, name: str, set_attribute: SetAttribute) -> None:
        original = redis_scripts._source
        mutated = self._replaced(original(name))
        set_attribute(redis_scripts, "_source", lambda asked: mutated if asked == name else original(asked))

    def _apply_to_function(self, module_name: str, name: str, set_attribute: SetAttribute) -> None:
        module = import_module(module_name)
        owner: Any = module
        *path, last = name.split(".")
        for part in path:
            owner = getattr(owner, part)
        function = inspect.getattr_static(owner, last)
        function = function.fget if isinstance(function, property) else getattr(owner, last)
        source = self._replaced(textwrap.dedent(inspect.getsource(function)))
        made: dict[str, Any] = {}
        flags = __future__.annotations.compiler_flag
        exec(compile(source, f"<mutant of {self.where}>", "exec", flags, dont_inherit=True), module.__dict__, made)
        set_attribute(owner, last, made[last])


MUTANTS: dict[str, Mutant] = {
    "dispatch: epoch and nonce": Mutant(
        "lua:dispatch", "if rec[1] ~= epoch or rec[2] ~= nonce then return 'other_term' end", ""
    ),
    "dispatch: released is refused": Mutant("lua:dispatch", "if rec[3] ~= 'held' then return 'released' end", ""),
    "dispatch: ledger compare-and-set": Mutant("lua:dispatch", "if row ~= op.expected then", "if false then"),
    "dispatch: gen": Mutant("lua:dispatch", "if redis.call('HGET', ledger, 'm:gen') ~= ARGV[3] then", "if false then"),
    "dispatch: run id": Mutant("lua:dispatch", "if another_server(ARGV[4]) then", "if false then"),
    "acquire: compare-and-set": Mutant(
        "lua:acquire", "if stands ~= (ARGV[1] ~= '') or not as_seen then", "if false then"
    ),
    "acquire: the holder is still absent": Mutant(
        "lua:acquire", "if ARGV[3] == '1' and subscribers(was[4]) ~= 0 then", "if false then"
    ),
    "acquire: epoch above the ledger's": Mutant("lua:acquire", "number(meta[2]) + 1, ", ""),
    "acquire: presence only where counted": Mutant(
        "lua:acquire", "if subscribers(presence) < 1 then presence = '' end", ""
    ),
    "renew: seq only rises": Mutant(
        "lua:renew", "if number(redis.call('HGET', KEYS[1], 'seq')) >= tonumber(ARGV[3]) then", "if false then"
    ),
    "trust window": Mutant("ha_beat.store.lease:Term.trusted", "return now < self.trusted_until", "return True"),
    "trust counts from the send": Mutant(
        "ha_beat.election.state_machine:_as_leader",
        "until(sent_at + timing.ttl - timing.margin)",
        "until(now + timing.ttl)",
    ),
    "presence": Mutant(
        "ha_beat.election.state_machine:_opportunity", "if absent_since is not None and", "if False and"
    ),
    "presence: absent at two polls": Mutant(
        "ha_beat.election.state_machine:_opportunity", ">= timing.poll_interval - _ROUNDING", ">= 0"
    ),
    "presence: of a channel that was seen": Mutant(
        "ha_beat.election.state_machine:_means_death", "if record.presence == state.counted:", "if True:"
    ),
    "presence: its end is told at once": Mutant(
        "ha_beat.election.state_machine:_as_leader", "case PresenceBroke():", "case PresenceBroke() if False:"
    ),
    "presence: a flapping one is left out": Mutant(
        "ha_beat.election.state_machine:_as_leader", "flapping = losses >= PRESENCE_LOSSES", "flapping = False"
    ),
    "stall timeout": Mutant("ha_beat.election.state_machine:decide", "if fitness.stalled:", "if False:"),
}

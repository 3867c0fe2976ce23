"""Guards of the package, each with the rule it serves and the test that goes red without it.

`tests/faults/test_guards.py` has scenarios of its own for the guards in `tests.mutants`; these here are taken out one
by one under the tests that watch them anyway (`tests/faults/test_watched.py`). The table in `docs/rules.md` is made of
both.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.mutants import MUTANTS, Mutant

CLAIM = "tests/integration/dispatch/test_two_phase.py"
CONTRACT = "tests/integration/store/test_lease_store.py"
ELECTION = "tests/unit/election/test_state_machine.py"
ENQUEUER = "tests/unit/leader/test_enqueuer.py"
FEED = "tests/unit/store/test_shadow.py"
MARK = "tests/integration/dispatch/test_lease_marker.py"
SCRIPT = "tests/integration/store/test_dispatch_script.py"
STATE_LOSS = "tests/unit/leader/test_state_loss.py"
TAKEOVER = "tests/unit/leader/test_reconcile.py"


#: Rule and scenario of each guard in `tests.mutants`.
SCENARIOS: dict[str, tuple[int, str]] = {
    "dispatch: epoch and nonce": (9, "late_batch"),
    "dispatch: released is refused": (8, "batch_after_release"),
    "dispatch: ledger compare-and-set": (6, "batch_twice"),
    "dispatch: gen": (1, "batch_into_lost_ledger"),
    "dispatch: run id": (1, "batch_into_restarted_server"),
    "acquire: compare-and-set": (12, "race"),
    "acquire: the holder is still absent": (10, "late_theft"),
    "acquire: epoch above the ledger's": (9, "lost_lease"),
    "acquire: presence only where counted": (10, "uncounted_presence"),
    "renew: seq only rises": (12, "late_renewal"),
    "trust window": (12, "cut_off"),
    "trust counts from the send": (12, "slow_reply"),
    "presence": (10, "dead_leader"),
    "presence: absent at two polls": (10, "absent_once"),
    "presence: of a channel that was seen": (2, "never_seen"),
    "presence: its end is told at once": (10, "flapping"),
    "presence: a flapping one is left out": (10, "third_loss"),
    "stall timeout": (17, "hung_main_loop"),
}


@dataclass(frozen=True)
class Guard:
    """`rule`: its number in `docs/rules.md`. `test`: the id of the test that fails without the guard."""

    rule: int
    name: str
    mutant: Mutant
    test: str


WATCHED: tuple[Guard, ...] = (
    # --- 1: state loss is detected
    Guard(
        1,
        "renew: gen",
        Mutant("lua:renew", "if redis.call('HGET', KEYS[2], 'm:gen') ~= ARGV[5] then", "if false then"),
        f"{CONTRACT}::test_work_under_another_incarnation_of_the_state_or_the_server_is_lost[redis-server]",
    ),
    Guard(
        1,
        "renew: run id",
        Mutant("lua:renew", "if another_server(ARGV[6]) then", "if false then"),
        f"{CONTRACT}::test_work_under_another_incarnation_of_the_state_or_the_server_is_lost[redis-server]",
    ),
    Guard(
        1,
        "acquire: a ledger of another gen is another state",
        Mutant("lua:acquire", "if not gen or (was[5] and was[5] ~= gen) then", "if not gen then"),
        f"{CONTRACT}::test_a_ledger_that_is_not_the_leases_is_a_new_incarnation[redis-server]",
    ),
    Guard(
        1,
        "assess: a new gen is a loss",
        Mutant("ha_beat.leader.state_loss:assess", "if gen not in previous_gens:", "if False:"),
        f"{STATE_LOSS}::test_a_lost_ledger_is_a_loss_also_for_a_replica_that_knew_nothing",
    ),
    Guard(
        1,
        "assess: a ledger behind what was acknowledged is a loss",
        Mutant("ha_beat.store.shadow:Shadow.ahead_of", "return bool(self.lost(rows, now))", "return False"),
        f"{STATE_LOSS}::test_a_ledger_behind_what_was_acknowledged_is_a_loss",
    ),
    Guard(
        1,
        "assess: a restart without an append-only file is a loss, whoever takes over",
        Mutant(
            "ha_beat.leader.state_loss:assess", "if not facts.append_only:", "if not facts.append_only and not known:"
        ),
        f"{STATE_LOSS}::test_a_restart_without_one_is_a_loss_whoever_takes_over",
    ),
    Guard(
        1,
        "assess: what was due until contact was lost may have been enqueued",
        Mutant(
            "ha_beat.election.connectivity:Contact._lose",
            "self.lost_at, self._break_known = now, True",
            "self.lost_at, self._break_known = now - 5, True",
        ),
        "tests/unit/election/test_connectivity.py::test_after_an_outage_contact_ended_before_it_and_began_with_its_end",
    ),
    Guard(
        2,
        "assess: a promoted server is nobody's witness",
        Mutant(
            "ha_beat.leader.state_loss:_after_failover",
            "if not known or contact_lost is None:",
            "if contact_lost is None:",
        ),
        f"{STATE_LOSS}::test_a_promoted_server_was_there_before_and_its_start_tells_nothing",
    ),
    Guard(
        2,
        "assess: an old primary that stops by itself has gone on until then",
        Mutant("ha_beat.leader.state_loss:_after_failover", "doubt_until if facts.min_replicas else", ""),
        f"{STATE_LOSS}::test_after_a_failover_that_lost_nothing_known_the_old_primary_may_have_gone_on",
    ),
    Guard(
        2,
        "assess: and goes on for as long as its replicas may lag",
        Mutant("ha_beat.leader.state_loss:assess", "timedelta(seconds=facts.max_lag)", "timedelta(0)"),
        f"{STATE_LOSS}::test_after_a_failover_that_lost_nothing_known_the_old_primary_may_have_gone_on",
    ),
    Guard(
        1,
        "shadow: positions never move back",
        Mutant("ha_beat.store.shadow:Shadow.learn", "if known is None or known < position:", "if True:"),
        f"{STATE_LOSS}::test_positions_never_move_back",
    ),
    Guard(
        1,
        "takeover: what may have been enqueued is not enqueued again",
        Mutant("ha_beat.leader.reconcile:_skip_to", "if slot.base >= floor:", "if True:"),
        f"{TAKEOVER}::test_after_a_loss_a_store_that_lags_does_not_run_its_past_again",
    ),
    Guard(
        1,
        "enqueuer: an entry that only knows itself is not asked before its base",
        Mutant("ha_beat.leader.planner:Planner.plan", "max(again, slot.base)", "again"),
        f"{ENQUEUER}::test_an_entry_that_only_knows_itself_is_not_asked_before_its_base",
    ),
    Guard(
        1,
        "assess: the clock of who was lost with the state may have been ahead",
        Mutant(
            "ha_beat.leader.state_loss:assess",
            "contact_lost or facts.started_at) + _GUARD",
            "contact_lost or facts.started_at)",
        ),
        "tests/unit/leader/test_loss_storm.py::test_whatever_is_lost_nothing_runs_twice_or_is_dropped_in_silence",
    ),
    Guard(
        1,
        "takeover: what was lost of another release's entries stays in doubt until it leads",
        Mutant("ha_beat.leader.reconcile:_of_others", "in_doubt_until=loss.floor", "in_doubt_until=None"),
        f"{TAKEOVER}::test_what_is_in_doubt_of_another_release_s_entry_stays_so_until_that_one_leads",
    ),
    Guard(
        1,
        "enqueuer: a leader remembers all of the ledger that it took over",
        Mutant("ha_beat.leader.enqueuer:Enqueuer._take_over", "self._shadow.learn_rows(rows)", "pass"),
        f"{ENQUEUER}::test_a_leader_that_loses_the_ledger_remembers_what_was_not_due_in_its_term",
    ),
    Guard(
        1,
        "election: who remembers the state that is gone goes first",
        Mutant("ha_beat.election.state_machine:_may_go", "not fitness.remembers and now < campaign.open_at", "False"),
        "tests/unit/election/test_elector.py::test_after_an_outage_that_took_all_state_those_who_remember_it_go_first",
    ),
    Guard(
        1,
        "enqueuer: a loss that the leader has not seen to is the next one's too",
        Mutant(
            "ha_beat.leader.enqueuer:Enqueuer._assess",
            "self._say(ledger, acquired.term, self._loss.encoded())",
            "self._unfinished = False",
        ),
        f"{ENQUEUER}::test_a_takeover_that_is_broken_off_is_made_anew_by_the_next_leader",
    ),
    # --- 2: a failover with the old master cut off
    Guard(
        2,
        "presence: of another run of the server proves nothing",
        Mutant("ha_beat.election.state_machine:_sight", 'view.run_id not in ("", record.run_id)', "False"),
        f"{ELECTION}::test_absence_on_another_run_of_the_server_is_nobodys_death",
    ),
    Guard(
        2,
        "enqueuer: nothing is dispatched at once on another server",
        Mutant(
            "ha_beat.leader.enqueuer:Enqueuer._begin",
            "if acquired.server_changed and (others or held_on == acquired.term.run_id):",
            "if False:",
        ),
        f"{ENQUEUER}::test_on_another_server_nothing_is_dispatched_until_the_last_holder_must_have_stopped",
    ),
    Guard(
        2,
        "acquire: whoever ends before its takeover is complete leaves that to the next",
        Mutant(
            "lua:acquire", "if not written_on or written_on == '' then written_on = server end", "written_on = server"
        ),
        f"{ENQUEUER}::test_who_takes_over_from_a_leader_that_waited_on_another_server_waits_as_well",
    ),
    Guard(
        2,
        "enqueuer: who waited on another server and leads once more waits on",
        Mutant("ha_beat.leader.enqueuer:Enqueuer._begin", "(others or held_on == acquired.term.run_id)", "others"),
        f"{ENQUEUER}::test_a_leader_that_waits_on_another_server_and_leads_once_more_waits_on",
    ),
    Guard(
        2,
        "renew: on so many replicas of Redis",
        Mutant(
            "ha_beat.store.lease:RedisLeaseStore._await_replicas", "if int(reached) < self._wait_replicas:", "if False:"
        ),
        f"{CONTRACT}::test_a_renewal_counts_only_when_enough_replicas_have_it",
    ),
    Guard(
        2,
        "assess: a primary back from a snapshot is told from a promoted replica by its start",
        Mutant("ha_beat.leader.state_loss:_after_failover", "floor = max(floor, facts.started_at + _GUARD)", "pass"),
        f"{STATE_LOSS}::test_a_primary_with_replicas_that_came_back_from_a_snapshot_looks_promoted",
    ),
    # --- 3: a script does not roll back
    Guard(
        3,
        "dispatch: TYPE before the first write",
        Mutant("lua:dispatch", "detail = wrong_type(command)", "detail = nil"),
        f"{SCRIPT}::test_when_a_later_queue_of_several_is_no_list_none_gets_the_message[redis-server]",
    ),
    Guard(
        3,
        "dispatch: what was not pushed is not recorded",
        Mutant("lua:dispatch", "if kind ~= 'error' then", "if true then"),
        f"{SCRIPT}::test_a_queue_that_is_no_list_is_one_entrys_error[redis-server]",
    ),
    Guard(
        3,
        "dispatch: pushes by pcall",
        Mutant("lua:dispatch", "redis.pcall(unpack(command))", "redis.call(unpack(command))"),
        f"{SCRIPT}::test_a_right_that_is_missing_in_mid_batch_is_one_entrys_error[redis-server-publish]",
    ),
    Guard(
        3,
        "dispatch: the journal by pcall",
        Mutant(
            "lua:dispatch",
            "redis.pcall('XADD', journal, 'MAXLEN'",
            "redis.call('XADD', journal, 'MAXLEN'",
        ),
        f"{SCRIPT}::test_a_broken_journal_does_not_stop_the_dispatch[redis-server]",
    ),
    Guard(
        3,
        "renew: the requests by pcall",
        Mutant("lua:renew", "redis.pcall('HLEN', KEYS[4])", "redis.call('HLEN', KEYS[4])"),
        f"{CONTRACT}::test_requests_that_are_no_requests_cost_no_leader_its_lease[redis-server]",
    ),
    Guard(
        3,
        "scripts: NUMSUB by pcall",
        Mutant("lua:acquire", "redis.pcall('PUBSUB', count, channel)", "redis.call('PUBSUB', count, channel)"),
        "tests/integration/topologies/test_rights.py::test_rights_that_are_a_comfort",
    ),
    # --- 4: a full server
    Guard(
        4,
        "dispatch: the first write is one that a full server refuses",
        Mutant("lua:dispatch", "redis.call('HSET', ledger, 'm:epoch', ARGV[1])", ""),
        f"{SCRIPT}::test_a_full_redis_refuses_the_batch_whole[redis-server]",
    ),
    Guard(
        4,
        "lease: its scripts run although the server is full",
        Mutant(
            "ha_beat.store.scripts:Script.__init__",
            "[_ALTHOUGH_FULL + source, source] if although_full else [source]",
            "[source]",
        ),
        f"{CONTRACT}::test_a_full_redis_does_not_cost_the_lease[redis-server]",
    ),
    # --- 5: scheduling time
    Guard(
        5,
        "dispatch: an instant ahead of Redis' clock is refused",
        Mutant("lua:dispatch", "if op.at_ms > latest then", "if false then"),
        f"{SCRIPT}::test_an_instant_ahead_of_redis_clock_is_refused[redis-server]",
    ),
    Guard(
        5,
        "dispatch: by the offset that the leader has told",
        Mutant("lua:dispatch", "(tonumber(redis.call('HGET', lease, 'offset_ms')) or 0)", "0"),
        f"{SCRIPT}::test_an_instant_ahead_of_redis_clock_is_refused[redis-server]",
    ),
    Guard(
        5,
        "time: a step of the wall clock is not followed",
        Mutant("ha_beat.election.cluster_clock:SchedulingTime.seconds", "return carried_on", "return wall"),
        "tests/unit/election/test_cluster_clock.py::test_a_step_that_nobody_confirms_is_not_followed",
    ),
    Guard(
        5,
        "time: the last leader votes",
        Mutant("ha_beat.election.cluster_clock:SchedulingTime.join", "agreed = vote(mine, *others)", "agreed = mine"),
        "tests/unit/election/test_cluster_clock.py::test_a_replica_that_began_with_a_wrong_clock_is_outvoted_as_it_takes_over",
    ),
    Guard(
        5,
        "takeover: a last run in the future is not believed",
        Mutant("ha_beat.leader.reconcile:take_over", "if slot.base > scribe.now + _CLOCK_ROOM:", "if False:"),
        f"{TAKEOVER}::test_a_store_that_dates_a_run_in_the_future_is_not_believed",
    ),
    # --- 6: identity of an occurrence
    Guard(
        6,
        "solar: to the second",
        Mutant("ha_beat.schedule.recurrence:Solar._search", ".replace(microsecond=0)", ""),
        "tests/unit/schedule/test_recurrence.py::test_solar_events_have_one_instant_each",
    ),
    Guard(
        6,
        "occurrence: one task id for whoever enqueues it",
        Mutant("ha_beat.schedule.occurrence:Occurrence.task_id", "uuid.uuid5(_NAMESPACE, ", "str(uuid.uuid4()) + ("),
        "tests/unit/schedule/test_occurrence.py::test_an_occurrence_has_one_task_id_for_whoever_enqueues_it",
    ),
    Guard(
        6,
        "enqueuer: a row that has moved is followed",
        Mutant(
            "ha_beat.leader.results:Settler._follow",
            "slot.base = max(slot.base, row.base) if row else slot.base",
            "",
        ),
        f"{ENQUEUER}::test_a_row_that_somebody_else_has_written_is_followed",
    ),
    # --- 7: the claim path
    Guard(
        7,
        "claim: the claim is fenced",
        Mutant("lua:dispatch", "if rec[1] ~= epoch or rec[2] ~= nonce then return 'other_term' end", ""),
        f"{CLAIM}::test_a_claim_is_refused_under_a_term_that_is_over",
    ),
    Guard(
        7,
        "claim: settling by another term is fenced",
        Mutant("lua:settle", "if why then return { 'fenced', why } end", ""),
        f"{CLAIM}::test_an_old_term_settles_nothing",
    ),
    Guard(
        7,
        "claim: what may have been accepted is not taken back",
        Mutant(
            "ha_beat.dispatch.two_phase:_sorted_out",
            "if known.outcome in {PublishOutcome.REFUSED, PublishOutcome.UNSENT} and not known.unknown",
            "if known.outcome in {PublishOutcome.REFUSED, PublishOutcome.UNSENT}",
        ),
        f"{CLAIM}::test_what_may_have_been_accepted_is_never_taken_back",
    ),
    Guard(
        7,
        "claim: a late confirmation",
        Mutant("lua:settle", "or (found == 'uncertain ' .. claim and state == '')", ""),
        f"{CLAIM}::test_a_late_confirmation_turns_uncertain_into_enqueued",
    ),
    Guard(
        7,
        "claim: a row that has moved on is left alone",
        Mutant("lua:settle", "if now == replaced then", "if true then"),
        f"{CLAIM}::test_a_late_confirmation_leaves_a_row_alone_that_has_moved_on",
    ),
    Guard(
        7,
        "claim: nothing is sent without trust",
        Mutant("ha_beat.dispatch.two_phase:ClaimDispatcher._send", "elif not self._trusted(term):", "elif False:"),
        f"{CLAIM}::test_trust_that_ends_in_mid_batch_ends_the_sending",
    ),
    Guard(
        7,
        "claim: what was never tried is another's",
        Mutant(
            "ha_beat.dispatch.two_phase:ClaimDispatcher._claimed",
            "(answer.kind is AnswerKind.MINE and tried)",
            "answer.kind is AnswerKind.MINE",
        ),
        f"{CLAIM}::test_a_step_of_a_request_is_sent_once_and_leaves_the_row_alone",
    ),
    Guard(
        7,
        "claim: settled only once it can't be under way",
        Mutant("ha_beat.leader.open_claims:Claims.settle", "and self._clock.elapsed() >= self._settle_at", ""),
        f"{ENQUEUER}::test_what_another_left_claimed_is_settled_no_sooner_than_it_can_be_under_way",
    ),
    Guard(
        7,
        "worker: a second sending is dropped",
        Mutant("ha_beat.guard:_is_second", "if taken_up is None or text(taken_up) == mark:", "if True:"),
        "tests/integration/guard/test_guard.py::test_a_second_sending_is_dropped",
    ),
    Guard(
        7,
        "worker: a redelivery is let pass",
        Mutant("ha_beat.guard:_is_second", "if taken_up is None or text(taken_up) == mark:", "if taken_up is None:"),
        "tests/integration/guard/test_guard.py::test_a_redelivery_and_a_retry_run",
    ),
    # --- 8: released is refused
    Guard(
        8,
        "renew: released is refused",
        Mutant("lua:renew", "if rec[3] ~= 'held' then return 'released' end", ""),
        f"{CONTRACT}::test_a_released_lease_refuses_its_last_holder[redis-server]",
    ),
    Guard(
        8,
        "release: only by the term that holds the lease",
        Mutant("lua:release", "if foreign(KEYS[1], ARGV[1], ARGV[2]) then return 0 end", ""),
        f"{CONTRACT}::test_after_another_acquisition_the_old_term_is_lost[redis-server]",
    ),
    Guard(
        8,
        "release: standbys are woken",
        Mutant("lua:release", "redis.pcall('PUBLISH', ARGV[5], 'released')", ""),
        f"{CONTRACT}::test_a_released_lease_refuses_its_last_holder[redis-server]",
    ),
    # --- 9: the epoch
    Guard(
        9,
        "acquire: epoch above the lease's",
        Mutant("lua:acquire", "math.max(number(was[1]) + 1, ", "math.max("),
        f"{CONTRACT}::test_the_epoch_is_above_each_that_is_known[redis-server-lease]",
    ),
    Guard(
        9,
        "acquire: epoch above what the candidate has seen",
        Mutant("lua:acquire", "tonumber(ARGV[4]) + 1, ", ""),
        f"{CONTRACT}::test_the_epoch_is_above_each_that_is_known[redis-server-seen]",
    ),
    Guard(
        9,
        "acquire: epoch not below the server's time",
        Mutant("lua:acquire", ", time_ms()))", "))"),
        f"{CONTRACT}::test_the_epoch_does_not_fall_back_when_the_state_is_lost[redis-server]",
    ),
    Guard(
        9,
        "dispatch: the nonce too",
        Mutant("lua:dispatch", "if rec[1] ~= epoch or rec[2] ~= nonce then", "if rec[1] ~= epoch then"),
        f"{SCRIPT}::test_a_term_that_differs_in_anything_is_refused_whole[redis-server-nonce]",
    ),
    Guard(
        9,
        "election: the highest epoch seen is kept",
        Mutant("ha_beat.election.state_machine:_look", "max(state.seen_epoch, record.epoch if record else 0)", "0"),
        f"{ELECTION}::test_the_highest_epoch_seen_is_never_forgotten",
    ),
    # --- 10: presence that flaps
    Guard(
        10,
        "presence: another channel for each connection",
        Mutant("ha_beat.store.presence:RedisPresence.open", "token = new_token()", 'token = "the-same"'),
        "tests/integration/store/test_presence.py::test_each_connection_has_a_channel_of_its_own",
    ),
    Guard(
        10,
        "presence: a connection that was made anew is another",
        Mutant("ha_beat.store.presence:RedisPresence.wait", "if self._connected_again:", "if False:"),
        "tests/integration/store/test_presence.py::test_a_connection_that_comes_back_by_itself_counts_as_lost",
    ),
    Guard(
        10,
        "presence: PING",
        Mutant("ha_beat.store.presence:RedisPresence.wait", "self._ping_when_due(self._pubsub)", ""),
        "tests/integration/store/test_presence.py::test_a_server_that_stops_answering_is_noticed",
    ),
    Guard(
        10,
        "presence: without renewal in between",
        Mutant(
            "ha_beat.election.state_machine:_sight", "and unmoved and before.absent_since", "and before.absent_since"
        ),
        f"{ELECTION}::test_two_absences_must_be_of_the_same_thing",
    ),
    Guard(
        10,
        "presence: a new one is registered at once",
        Mutant(
            "ha_beat.election.state_machine:_as_leader",
            "case PresenceReady() if not state.presence and now >= state.no_presence_until:",
            "case PresenceReady() if False:",
        ),
        f"{ELECTION}::test_a_new_presence_connection_is_registered_at_once",
    ),
    Guard(
        2,
        "presence: one who has known an outage must have seen the channel",
        Mutant("ha_beat.election.state_machine:_as_standby", 'counted="", unbroken=False, bare_since', "bare_since"),
        f"{ELECTION}::test_who_has_known_an_outage_is_no_newcomer",
    ),
    Guard(
        10,
        "presence: what has cut a standby's may have cut the leader's",
        Mutant(
            "ha_beat.election.state_machine:_as_standby",
            'return replace(state, counted="", unbroken=False)',
            "return state",
        ),
        f"{ELECTION}::test_who_has_lost_its_own_presence_knows_of_no_death",
    ),
    Guard(
        2,
        "presence: a newcomer judges by the lease's own server alone",
        Mutant(
            "ha_beat.election.state_machine:_means_death",
            'record.run_id != "" and record.run_id == sighting.run_id',
            "True",
        ),
        f"{ELECTION}::test_a_newcomer_does_not_judge_by_a_server_that_it_cannot_tell_from_another",
    ),
    Guard(
        2,
        "election: after an outage longer than the lease its holder goes first",
        Mutant("ha_beat.election.state_machine:_holders_turn", "min(timing.courtesy, ttl)", "0"),
        f"{ELECTION}::test_after_an_outage_longer_than_the_lease_its_holder_goes_first",
    ),
    # --- 11: a late acquire
    Guard(
        11,
        "election: a lease under a nonce of one's own is free",
        Mutant("ha_beat.election.state_machine:_opportunity", "if record.nonce in state.nonces:", "if False:"),
        "tests/unit/election/test_elector.py::test_a_lost_acquire_reply_costs_a_moment_and_not_a_ttl",
    ),
    Guard(
        11,
        "election: earlier campaigns too",
        Mutant(
            "ha_beat.election.state_machine:_as_standby",
            "nonces = (*state.nonces, nonce)[-REMEMBERED_CAMPAIGNS:]",
            "nonces = (nonce,)",
        ),
        f"{ELECTION}::test_an_earlier_campaign_that_is_carried_out_late_leaves_a_lease_that_its_owner_may_take",
    ),
    # --- 12: seq and trust
    Guard(
        12,
        "election: each attempt has a number of its own",
        Mutant(
            "ha_beat.election.state_machine:_as_leader",
            "state = replace(state, seq=state.seq + 1, next_renewal=now + timing.retry_interval)",
            "state = replace(state, next_renewal=now + timing.retry_interval)",
        ),
        f"{ELECTION}::test_each_attempt_has_a_number_of_its_own_whatever_became_of_the_last",
    ),
    Guard(
        12,
        "election: the margin",
        Mutant("ha_beat.election.state_machine:Timing.margin", "return self.ttl / 10", "return 0.0"),
        "tests/unit/election/test_election_model.py::test_the_margin_bears_a_slow_leader_and_a_fast_standby[with]",
    ),
    # --- 13: entries that come and go
    Guard(
        13,
        "takeover: where an entry begins is written down",
        Mutant(
            "ha_beat.leader.reconcile:_place",
            "return scribe.armed(slot) if edited or off or behind or slot.base > reached else None",
            "return None",
        ),
        f"{TAKEOVER}::test_a_new_entry_is_armed_now",
    ),
    Guard(
        13,
        "takeover: an edited entry counts from the edit",
        Mutant("ha_beat.leader.reconcile:_place", "if edited or off:", "if False:"),
        f"{TAKEOVER}::test_an_edited_entry_owes_nothing_from_before_the_edit",
    ),
    Guard(
        13,
        "takeover: what an edit drops has its verdict",
        Mutant("ha_beat.leader.reconcile:_place", "reached < dropped <= slot.base", "False"),
        f"{TAKEOVER}::test_what_an_edited_entry_owed_by_its_old_schedule_gets_its_verdict",
    ),
    Guard(
        1,
        "takeover: an edit is no proof that nothing was enqueued",
        Mutant("ha_beat.leader.reconcile:_place", "if in_doubt:", "if in_doubt and not edited:"),
        f"{TAKEOVER}::test_after_a_loss_an_edited_entry_is_in_doubt_like_any_other",
    ),
    Guard(
        13,
        "takeover: an entry that was off counts from now",
        Mutant("ha_beat.leader.reconcile:_place", 'or (row is not None and row.verdict == "absent")', ""),
        f"{TAKEOVER}::test_an_entry_that_was_off_owes_nothing_and_counts_its_runs_anew",
    ),
    Guard(
        13,
        "takeover: what was off while nobody led owes nothing",
        Mutant("ha_beat.leader.reconcile:_place", "if not (edited or off) and _was_off(slot, row):", "if False:"),
        f"{TAKEOVER}::test_what_was_off_while_nobody_led_owes_nothing_of_that_time",
    ),
    Guard(
        13,
        "takeover: a store that is behind was not cleared",
        Mutant("ha_beat.leader.reconcile:_was_off", "and row.run_count <= slot.run_count", ""),
        f"{TAKEOVER}::test_a_store_that_is_behind_is_none_that_was_cleared",
    ),
    Guard(
        13,
        "takeover: what another leader dealt with is not begun again",
        Mutant("ha_beat.leader.reconcile:take_over", "and not _dealt_with(slot, row)", ""),
        f"{TAKEOVER}::test_what_was_off_once_goes_on_from_where_the_leader_of_that_time_left_it",
    ),
    Guard(
        13,
        "takeover: what was off and got another schedule counts from when it got it",
        Mutant("ha_beat.leader.reconcile:_place", "(off and not changed)", "off"),
        f"{TAKEOVER}::test_an_entry_that_was_off_and_got_another_schedule_is_owed_what_it_is_given",
    ),
    Guard(
        13,
        "agenda: runs are counted anew after it was off",
        Mutant("ha_beat.leader.due_queue:Slot.runs", 'or row.verdict == "absent"', ""),
        f"{TAKEOVER}::test_an_entry_that_was_off_owes_nothing_and_counts_its_runs_anew",
    ),
    Guard(
        13,
        "takeover: absence is believed only of a store that was asked in this term",
        Mutant("ha_beat.leader.reconcile:take_over", "if absence.certain:", "if True:"),
        f"{TAKEOVER}::test_only_a_store_that_was_asked_under_this_term_tells_that_an_entry_is_gone",
    ),
    Guard(
        13,
        "takeover: what is gone is remembered for days",
        Mutant(
            "ha_beat.leader.reconcile:_absences",
            "elif row.dispatched_ms < forget_before.timestamp() * 1000:",
            "else:",
        ),
        f"{TAKEOVER}::test_what_is_gone_is_remembered_for_days_and_then_no_more",
    ),
    Guard(
        13,
        "scheduler: what a release lacks is not gone at once",
        Mutant("ha_beat.scheduler:HAMixin.absence", "if self._told_what_is_gone else None", ""),
        "tests/integration/scheduler/test_scheduler.py::test_an_entry_that_was_gone_for_long_owes_nothing_and_one_of_another_release_all",
    ),
    Guard(
        13,
        "scheduler: what a leader was without for an hour is gone",
        Mutant(
            "ha_beat.scheduler:HAMixin.absence", "Absence(certain=True) if self._told_what_is_gone else None", "None"
        ),
        "tests/integration/scheduler/test_scheduler.py::test_an_entry_that_was_gone_for_long_owes_nothing_and_one_of_another_release_all",
    ),
    # --- 14: requests and the pause
    Guard(
        14,
        "dispatch: a request that was taken back is refused",
        Mutant("lua:dispatch", "if redis.call('HEXISTS', requests, op.request) == 0 then", "if false then"),
        f"{SCRIPT}::test_a_request_that_was_taken_back_is_not_carried_out[redis-server]",
    ),
    Guard(
        14,
        "dispatch: a step is done once",
        Mutant("lua:dispatch", ">= op.step then return 'mine'", "> op.step then return 'mine'"),
        f"{SCRIPT}::test_a_step_of_a_request_is_done_once_and_moves_no_position[redis-server]",
    ),
    Guard(
        14,
        "dispatch: a request moves no position",
        Mutant(
            "lua:dispatch",
            "if op.request ~= '' then\n        redis.call('HSET'",
            "if false then\n        redis.call('HSET'",
        ),
        f"{SCRIPT}::test_a_step_of_a_request_is_done_once_and_moves_no_position[redis-server]",
    ),
    Guard(
        14,
        "dispatch: the pause is looked at in the script",
        Mutant("lua:dispatch", "if paused and #op.commands > 0 then", "if false then"),
        f"{SCRIPT}::test_while_paused_nothing_is_enqueued_by_schedule[redis-server]",
    ),
    Guard(
        14,
        "control: a pause outlives the ledger",
        Mutant(
            "ha_beat.leader.request_handler:Control._learn_pause",
            "if pause is None and shadow.paused and",
            "if False and",
        ),
        "tests/integration/leader/test_pause_kept.py::test_a_pause_of_the_ledger_that_was_lost_is_put_back",
    ),
    # --- 15: verdicts over ranges; a batch again
    Guard(
        14,
        "control: an answer that did not get through is given again as it was",
        Mutant(
            "ha_beat.leader.request_handler:Control._serve",
            "self._undelivered.get(request.id, (None, None))",
            "(None, None)",
        ),
        "tests/integration/leader/test_waiting.py::test_an_answer_that_did_not_get_through_is_given_again_as_it_was",
    ),
    Guard(
        14,
        "control: a request whose broker is away holds up no other",
        Mutant("ha_beat.leader.request_handler:Control._serve", "away = exc", "raise"),
        "tests/integration/leader/test_waiting.py::test_a_request_whose_broker_is_away_holds_up_no_other",
    ),
    Guard(
        15,
        "misfire: what `once` passes over has its verdict",
        Mutant(
            "ha_beat.schedule.occurrence:Misfire.settle",
            "return Due(send, send, Skipped(first, send, passed_over, self._why_passed_over(kept, wanted)))",
            "return Due(send, send)",
        ),
        "tests/unit/schedule/test_occurrence.py::test_every_instant_gets_exactly_one_verdict",
    ),
    Guard(
        15,
        "dispatch: a row names the dispatch that wrote it",
        Mutant("lua:dispatch", "if row == op.row then return 'mine', '' end", ""),
        f"{SCRIPT}::test_the_same_batch_again_changes_nothing[redis-server]",
    ),
    Guard(
        15,
        "dispatch: a batch knows what it has written itself",
        Mutant("lua:dispatch", "standing[fields[i]] = op.row", ""),
        f"{SCRIPT}::test_an_occurrence_that_stands_twice_in_a_batch_is_enqueued_once[redis-server]",
    ),
    # --- 16: the journal as a feed
    Guard(
        16,
        "shadow feed: a gap in the journal",
        Mutant("ha_beat.store.shadow:ShadowFeed.poll", "first > shadow.counter + 1 or", ""),
        f"{FEED}::test_records_that_were_trimmed_before_they_were_read_make_it_read_the_ledger",
    ),
    Guard(
        16,
        "shadow feed: another incarnation",
        Mutant("ha_beat.store.shadow:ShadowFeed.poll", "if gen != shadow.gen or gap", "if gap"),
        f"{FEED}::test_another_incarnation_of_the_ledger_is_read_whole_and_moves_no_position_back",
    ),
    # --- 17: a hung main loop
    Guard(
        17,
        "election: after a release for cause others go first",
        Mutant("ha_beat.election.state_machine:released", "barred_until=now + timing.ttl", "barred_until=0.0"),
        f"{ELECTION}::test_after_a_release_for_cause_others_go_first",
    ),
    Guard(
        17,
        "election: one that hangs does not campaign",
        Mutant("ha_beat.election.state_machine:decide", "not fitness.stalled and fitness.ready", "fitness.ready"),
        f"{ELECTION}::test_a_stalled_replica_does_not_campaign",
    ),
    # --- 18: two apps, two versions, two stores
    Guard(
        18,
        "acquire: another app",
        Mutant("lua:acquire", "if meta[3] and meta[3] ~= ARGV[5] then", "if false then"),
        f"{CONTRACT}::test_another_app_is_refused_loudly_even_when_the_lease_is_free[redis-server]",
    ),
    Guard(
        18,
        "acquire: a newer schema",
        Mutant("lua:acquire", "if meta[5] and number(meta[5]) > tonumber(ARGV[8]) then", "if false then"),
        f"{CONTRACT}::test_newer_software_is_not_led_over[redis-server]",
    ),
    Guard(
        18,
        "ledger: rows of a newer version",
        Mutant("ha_beat.store.ledger:LedgerRow._parse", 'if row["v"] > ROW_VERSION:', "if False:"),
        "tests/unit/store/test_ledger.py::test_what_is_not_understood_is_no_row",
    ),
    Guard(
        18,
        "mark: another store's leader is at work",
        Mutant("lua:mark", "if was[1] and not same and not stale then", "if false then"),
        f"{MARK}::test_another_stores_leader_is_left_alone_and_both_are_named",
    ),
    Guard(
        18,
        "mark: only the one that was watched is taken over",
        Mutant("lua:mark", "was[1] == ARGV[6] and was[2] == ARGV[7]", "was[1] == ARGV[6]"),
        f"{MARK}::test_a_mark_that_moved_while_nobody_looked_is_not_taken_over",
    ),
    Guard(
        18,
        "mark: who leads knows its store's incarnation",
        Mutant("ha_beat.dispatch.lease_marker:StoreMark.require", "self._gen = term.gen", "pass"),
        f"{MARK}::test_a_late_mark_of_ones_own_store_before_a_loss_is_waited_out_at_most",
    ),
    Guard(
        18,
        "mark: of a replica that is registered here",
        Mutant(
            "ha_beat.dispatch.lease_marker:StoreMark._is_of_this_store",
            "return bool(self._store().hexists(self._keys.members, mark.holder))",
            "return False",
        ),
        f"{MARK}::test_a_mark_of_a_replica_that_is_registered_in_ones_own_store_is_no_other_stores",
    ),
    Guard(
        18,
        "mark: a standby of another store does not campaign",
        Mutant(
            "ha_beat.dispatch.lease_marker:StoreMark.permits",
            "return self._looked and (self._other is None or self._stale())",
            "return self._looked",
        ),
        f"{MARK}::test_a_mark_that_moves_is_never_stale",
    ),
    Guard(
        18,
        "mark: it is kept before something is dispatched",
        Mutant("ha_beat.dispatch.lease_marker:StoreMark.require", "if self._lately(self._kept, term):", "if True:"),
        f"{MARK}::test_nothing_is_dispatched_while_the_mark_cannot_be_kept",
    ),
    # --- 19: numbers in scripts
    Guard(
        19,
        "occurrence: one spelling for an instant",
        Mutant("ha_beat.schedule.occurrence:Occurrence.instant", 'timespec="microseconds"', ""),
        "tests/unit/schedule/test_occurrence.py::test_an_instant_is_spelled_in_one_way",
    ),
    # --- 20: the script is the proof
    Guard(
        20,
        "dispatch: the epoch, though the nonce is doubled",
        Mutant("lua:dispatch", "if rec[1] ~= epoch or rec[2] ~= nonce then", "if rec[2] ~= nonce then"),
        f"{SCRIPT}::test_a_machine_that_was_cloned_enqueues_under_no_term_that_is_over[redis-server]",
    ),
)


def guards() -> list[Guard]:
    """All of them, by rule."""
    without = "tests/faults/test_guards.py::test_the_promise_breaks_without_the_guard"
    played = [Guard(rule, name, MUTANTS[name], f"{without}[{scene}]") for name, (rule, scene) in SCENARIOS.items()]
    return sorted([*played, *WATCHED], key=lambda guard: guard.rule)


def guards_table() -> str:
    lines = ["| rule | guard | goes red without it |", "|---|---|---|"]
    for guard in guards():
        path, _, test = guard.test.removeprefix("tests/").partition("::")
        lines.append(f"| {guard.rule} | {guard.name} | `{path}` `{test}` |")
    return "\n".join(lines)

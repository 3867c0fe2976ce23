"""Guards of the protocol, each with the rule it serves, its mutant and the test that fails without it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.mutants import ALWAYS, CALL, DROP, DROP_FIRST, DROP_LAST, NEVER, REPLACE, Mutant

CLAIM = "tests/integration/dispatch/test_two_phase.py"
CONTRACT = "tests/integration/store/test_lease_store.py"
ELECTION = "tests/unit/election/test_state_machine.py"
ENQUEUER = "tests/integration/leader/test_enqueuer.py"
FEED = "tests/integration/store/test_shadow.py"
MARK = "tests/integration/dispatch/test_lease_marker.py"
SCRIPT = "tests/integration/dispatch/test_dispatch_script.py"
STATE_LOSS = "tests/unit/leader/test_state_loss.py"
TAKEOVER = "tests/unit/leader/test_reconcile.py"
SCENARIOS = "tests/faults/test_guards.py"


def scenario(name: str) -> str:
    """Return the id of the test that plays a scenario of `tests/faults/test_guards.py` without the guard."""
    return f"{SCENARIOS}::test_the_promise_breaks_without_the_guard[{name}]"


@dataclass(frozen=True)
class Guard:
    """`rule`: its number in `docs/rules.md`. `test`: the id of the test that fails without the guard."""

    rule: int
    name: str
    mutant: Mutant
    test: str

    @property
    def scenario(self) -> str:
        """Name of its scenario; empty if another test watches it."""
        return self.test.partition("[")[2].rstrip("]") if self.test.startswith(SCENARIOS) else ""


GUARDS: tuple[Guard, ...] = (
    Guard(
        1,
        "dispatch: another incarnation of the ledger is refused",
        Mutant(NEVER, "dispatch-gen"),
        scenario("batch_into_lost_ledger"),
    ),
    Guard(
        1,
        "dispatch: another server is refused",
        Mutant(NEVER, "dispatch-run-id"),
        scenario("batch_into_restarted_server"),
    ),
    Guard(
        1,
        "renew: another incarnation of the ledger is refused",
        Mutant(NEVER, "renew-gen"),
        f"{CONTRACT}::test_work_under_another_incarnation_of_the_state_or_the_server_is_lost[redis-server]",
    ),
    Guard(
        1,
        "renew: another server is refused",
        Mutant(NEVER, "renew-run-id"),
        f"{CONTRACT}::test_work_under_another_incarnation_of_the_state_or_the_server_is_lost[redis-server]",
    ),
    Guard(
        1,
        "acquire: a ledger that is not the lease's starts a new incarnation",
        Mutant(NEVER, "acquire-other-ledger"),
        f"{CONTRACT}::test_a_ledger_that_is_not_the_leases_is_a_new_incarnation[redis-server]",
    ),
    Guard(
        1,
        "state loss: a new incarnation is a loss",
        Mutant(NEVER, "loss-new-gen"),
        f"{STATE_LOSS}::test_lost_ledger_is_a_loss_for_a_replica_that_knew_nothing",
    ),
    Guard(
        1,
        "state loss: a ledger behind what was acknowledged is a loss",
        Mutant(NEVER, "loss-behind-shadow"),
        f"{STATE_LOSS}::test_ledger_behind_the_shadow_is_a_loss",
    ),
    Guard(
        1,
        "state loss: a restart without an append-only file is a loss for every candidate",
        Mutant(REPLACE("not facts.append_only and shadow.gen != gen"), "loss-no-append-only"),
        f"{STATE_LOSS}::test_restart_without_an_append_only_file_is_a_loss",
    ),
    Guard(
        1,
        "state loss: what was due until contact was lost may have been enqueued",
        Mutant(REPLACE("now - 5"), "contact-lost-at"),
        "tests/unit/election/test_connectivity.py::test_after_an_outage_contact_ended_before_it_and_began_with_its_end",
    ),
    Guard(
        1,
        "shadow: positions never move back",
        Mutant(ALWAYS, "shadow-never-back"),
        f"{STATE_LOSS}::test_position_never_moves_back",
    ),
    Guard(
        1,
        "takeover: what may have been enqueued is not enqueued again",
        Mutant(ALWAYS, "loss-floor"),
        f"{TAKEOVER}::test_store_that_lags_does_not_repeat_occurrences_after_a_loss",
    ),
    Guard(
        1,
        "planner: a self-timed entry is not asked before its base",
        Mutant(REPLACE("queue.put(state, again)"), "plan-not-before-base"),
        f"{ENQUEUER}::test_entry_without_recurrence_is_not_asked_before_its_position",
    ),
    Guard(
        1,
        "state loss: the lost leader's clock may have been ahead",
        Mutant(DROP, "loss-clock-ahead"),
        "tests/unit/leader/test_loss_simulation.py::test_loss_causes_no_duplicate_and_no_missing_verdict",
    ),
    Guard(
        1,
        "takeover: a loss of another release's entries stays in doubt until that release leads",
        Mutant(REPLACE("operations.append(writer.arm(state))"), "in-doubt-of-others"),
        f"{TAKEOVER}::test_entry_of_another_release_stays_in_doubt_until_that_one_leads",
    ),
    Guard(
        1,
        "takeover: the shadow learns the whole ledger",
        Mutant(DROP, "shadow-learns-ledger"),
        f"{ENQUEUER}::test_leader_that_loses_the_ledger_keeps_entries_not_due_in_its_term",
    ),
    Guard(
        1,
        "election: a replica that remembers the lost state goes first",
        Mutant(NEVER, "campaign-remembers"),
        "tests/unit/election/test_elector.py::test_replica_that_remembers_lost_state_campaigns_first",
    ),
    Guard(
        1,
        "takeover: an unhandled loss is noted for the next leader",
        Mutant(REPLACE("self._unfinished = False"), "loss-noted"),
        f"{ENQUEUER}::test_unfinished_recovery_is_continued_by_the_next_leader",
    ),
    Guard(
        1,
        "takeover: an edit does not prove that nothing was enqueued",
        Mutant(REPLACE("in_doubt and not edited"), "edited-in-doubt"),
        f"{TAKEOVER}::test_edited_entry_is_in_doubt_after_a_loss",
    ),
    Guard(
        2,
        "presence: only a channel that was seen can be absent",
        Mutant(ALWAYS, "presence-channel-seen"),
        scenario("never_seen"),
    ),
    Guard(
        2,
        "state loss: a promoted server proves nothing without a shadow",
        Mutant(DROP_FIRST, "failover-no-witness"),
        f"{STATE_LOSS}::test_promoted_server_puts_all_in_doubt_until_now",
    ),
    Guard(
        2,
        "state loss: an old primary with min-replicas wrote until it stopped",
        Mutant(REPLACE("contact_lost"), "failover-old-primary"),
        f"{STATE_LOSS}::test_failover_is_in_doubt_until_the_old_primary_stops",
    ),
    Guard(
        2,
        "state loss: an old primary writes for as long as its replicas may lag",
        Mutant(REPLACE("timedelta(0)"), "failover-lag"),
        f"{STATE_LOSS}::test_failover_is_in_doubt_until_the_old_primary_stops",
    ),
    Guard(
        2,
        "presence: absence on another server proves nothing",
        Mutant(NEVER, "presence-same-server"),
        f"{ELECTION}::test_absence_on_another_server_does_not_count",
    ),
    Guard(
        2,
        "takeover: dispatch waits after a change of server",
        Mutant(NEVER, "hold-on-changed-server"),
        f"{ENQUEUER}::test_dispatch_on_another_server_waits_for_the_previous_holder",
    ),
    Guard(
        2,
        "acquire: an unfinished takeover is left to the next leader",
        Mutant(ALWAYS, "acquire-unfinished"),
        f"{ENQUEUER}::test_successor_of_a_leader_that_waited_waits_too",
    ),
    Guard(
        2,
        "takeover: a leader that waited on another server goes on waiting in its next term",
        Mutant(DROP_LAST, "hold-continued"),
        f"{ENQUEUER}::test_leader_that_waits_and_leads_again_continues_to_wait",
    ),
    Guard(
        2,
        "renew: enough replicas of Redis have it",
        Mutant(NEVER, "renew-wait-replicas"),
        f"{CONTRACT}::test_a_renewal_counts_only_when_enough_replicas_have_it",
    ),
    Guard(
        2,
        "state loss: a primary back from a snapshot may look promoted",
        Mutant(DROP, "failover-or-restart"),
        f"{STATE_LOSS}::test_restart_from_a_snapshot_of_a_primary_with_replicas_looks_promoted",
    ),
    Guard(
        2,
        "presence: after an outage a standby must have seen the channel",
        Mutant(DROP, "presence-after-outage"),
        f"{ELECTION}::test_who_has_known_an_outage_is_no_newcomer",
    ),
    Guard(
        2,
        "presence: a newcomer judges only on the lease's own server",
        Mutant(ALWAYS, "presence-newcomer-server"),
        f"{ELECTION}::test_newcomer_ignores_absence_on_an_unknown_server",
    ),
    Guard(
        2,
        "election: after an outage longer than the lease its holder goes first",
        Mutant(NEVER, "campaign-holder-first"),
        f"{ELECTION}::test_after_an_outage_longer_than_the_lease_its_holder_goes_first",
    ),
    Guard(
        3,
        "dispatch: TYPE is checked before the first write",
        Mutant(REPLACE("nil"), "dispatch-type-check"),
        f"{SCRIPT}::test_message_is_not_sent_if_one_of_its_queues_has_another_type[redis-server]",
    ),
    Guard(
        3,
        "dispatch: what was not pushed is not recorded",
        Mutant(ALWAYS, "dispatch-error-not-recorded"),
        f"{SCRIPT}::test_queue_key_of_another_type_fails_only_its_own_entry[redis-server]",
    ),
    Guard(
        3,
        "dispatch: a failed push does not end the script",
        Mutant(CALL, "dispatch-push-pcall"),
        f"{SCRIPT}::test_missing_right_in_mid_batch_fails_only_its_own_entry[redis-server-publish]",
    ),
    Guard(
        3,
        "dispatch: a failed journal does not end the script",
        Mutant(CALL, "journal-pcall"),
        f"{SCRIPT}::test_broken_journal_does_not_stop_the_dispatch[redis-server]",
    ),
    Guard(
        3,
        "renew: unreadable requests do not end the script",
        Mutant(CALL, "renew-requests-pcall"),
        f"{CONTRACT}::test_requests_key_of_another_type_does_not_stop_renewals[redis-server]",
    ),
    Guard(
        3,
        "scripts: a missing right for NUMSUB does not end the script",
        Mutant(CALL, "subscribers-pcall"),
        "tests/integration/topologies/test_rights.py::test_rights_that_are_a_comfort",
    ),
    Guard(
        4,
        "dispatch: the first write is one that a full server refuses",
        Mutant(DROP, "dispatch-first-write"),
        f"{SCRIPT}::test_full_redis_refuses_the_batch_whole[redis-server]",
    ),
    Guard(
        4,
        "lease: its scripts run although the server is full",
        Mutant(REPLACE("[source]"), "lease-although-full"),
        f"{CONTRACT}::test_a_full_redis_does_not_cost_the_lease[redis-server]",
    ),
    Guard(
        5,
        "dispatch: an instant ahead of Redis' clock is refused",
        Mutant(NEVER, "dispatch-not-early"),
        f"{SCRIPT}::test_instant_ahead_of_redis_clock_is_refused[redis-server]",
    ),
    Guard(
        5,
        "dispatch: Redis' clock is corrected by the leader's offset",
        Mutant(DROP, "dispatch-leader-offset"),
        f"{SCRIPT}::test_instant_ahead_of_redis_clock_is_refused[redis-server]",
    ),
    Guard(
        5,
        "clock: an unconfirmed step of the wall clock is not followed",
        Mutant(REPLACE("wall"), "clock-step"),
        "tests/unit/election/test_cluster_clock.py::test_step_that_no_other_clock_confirms_is_not_followed",
    ),
    Guard(
        5,
        "clock: the last leader votes",
        Mutant(NEVER, "clock-leader-votes"),
        "tests/unit/election/test_cluster_clock.py::test_new_leader_with_a_wrong_clock_is_outvoted",
    ),
    Guard(
        5,
        "takeover: a last run in the future is not believed",
        Mutant(NEVER, "base-in-future"),
        f"{TAKEOVER}::test_last_run_in_the_future_is_ignored",
    ),
    Guard(
        6,
        "dispatch: a row changes only from the expected one",
        Mutant(NEVER, "dispatch-compare"),
        scenario("batch_twice"),
    ),
    Guard(
        6,
        "solar: instants are rounded to the second",
        Mutant(REPLACE("event + timedelta(microseconds=500_000)"), "solar-seconds"),
        "tests/unit/schedule/test_recurrence.py::test_solar_event_has_one_instant",
    ),
    Guard(
        6,
        "occurrence: its task id is the same on every replica",
        Mutant(REPLACE("str(uuid.uuid4())"), "occurrence-task-id"),
        "tests/unit/schedule/test_occurrence.py::test_task_id_is_the_same_in_each_replica_and_version",
    ),
    Guard(
        6,
        "results: a row that has moved is followed",
        Mutant(DROP, "moved-row-followed"),
        f"{ENQUEUER}::test_row_changed_by_another_writer_is_followed",
    ),
    Guard(
        7,
        "claim: a claim is fenced",
        Mutant(NEVER, "term-epoch", "term-nonce"),
        f"{CLAIM}::test_claim_under_an_ended_term_is_refused",
    ),
    Guard(
        7,
        "claim: another term's result is refused",
        Mutant(DROP, "settle-own-term"),
        f"{CLAIM}::test_ended_term_gives_up_no_claim",
    ),
    Guard(
        7,
        "claim: what may have been accepted is not taken back",
        Mutant(DROP_LAST, "claim-maybe-accepted"),
        f"{CLAIM}::test_claim_of_a_maybe_accepted_message_is_not_taken_back",
    ),
    Guard(
        7,
        "claim: a late confirmation is recorded",
        Mutant(DROP, "settle-late-confirmation"),
        f"{CLAIM}::test_late_confirmation_turns_uncertain_into_enqueued",
    ),
    Guard(
        7,
        "claim: a row that has moved on is left alone",
        Mutant(ALWAYS, "settle-row-unmoved"),
        f"{CLAIM}::test_late_confirmation_does_not_replace_a_newer_row",
    ),
    Guard(
        7,
        "claim: nothing is sent without trust",
        Mutant(NEVER, "claim-send-trusted"),
        f"{CLAIM}::test_end_of_trust_in_mid_batch_ends_the_publishing",
    ),
    Guard(
        7,
        "claim: a claim that was never tried here is another's",
        Mutant(DROP_LAST, "claim-tried"),
        f"{CLAIM}::test_request_step_is_sent_once_and_leaves_the_row_alone",
    ),
    Guard(
        7,
        "claim: abandoned only once it can't be under way",
        Mutant(DROP_LAST, "claim-settled-late"),
        f"{ENQUEUER}::test_claim_of_another_is_given_up_only_when_it_cannot_be_in_flight",
    ),
    Guard(
        7,
        "worker: a second sending is dropped",
        Mutant(ALWAYS, "worker-second-sending"),
        "tests/integration/guard/test_guard.py::test_second_message_of_an_occurrence_is_dropped",
    ),
    Guard(
        7,
        "worker: a redelivery runs",
        Mutant(DROP_LAST, "worker-second-sending"),
        "tests/integration/guard/test_guard.py::test_redelivery_and_retry_run",
    ),
    Guard(8, "dispatch: a released lease is refused", Mutant(DROP, "term-held"), scenario("batch_after_release")),
    Guard(
        8,
        "renew: a released lease is refused",
        Mutant(DROP, "term-held"),
        f"{CONTRACT}::test_a_released_lease_refuses_its_last_holder[redis-server]",
    ),
    Guard(
        8,
        "release: only by the term that holds the lease",
        Mutant(DROP, "release-own-term"),
        f"{CONTRACT}::test_after_another_acquisition_the_old_term_is_lost[redis-server]",
    ),
    Guard(
        8,
        "release: standbys are woken",
        Mutant(DROP, "release-wakes"),
        f"{CONTRACT}::test_a_released_lease_refuses_its_last_holder[redis-server]",
    ),
    Guard(9, "dispatch: another term is refused", Mutant(NEVER, "term-epoch", "term-nonce"), scenario("late_batch")),
    Guard(
        9,
        "acquire: the epoch is above the ledger's",
        Mutant(REPLACE("0"), "epoch-above-ledger"),
        scenario("lost_lease"),
    ),
    Guard(
        9,
        "acquire: the epoch is above the lease's",
        Mutant(REPLACE("0"), "epoch-above-lease"),
        f"{CONTRACT}::test_the_epoch_is_above_each_that_is_known[redis-server-lease]",
    ),
    Guard(
        9,
        "acquire: the epoch is above what the candidate has seen",
        Mutant(REPLACE("0"), "epoch-above-seen"),
        f"{CONTRACT}::test_the_epoch_is_above_each_that_is_known[redis-server-seen]",
    ),
    Guard(
        9,
        "acquire: the epoch is not below the server's time",
        Mutant(REPLACE("0"), "epoch-above-time"),
        f"{CONTRACT}::test_the_epoch_does_not_fall_back_when_the_state_is_lost[redis-server]",
    ),
    Guard(
        9,
        "dispatch: the nonce is compared too",
        Mutant(NEVER, "term-nonce"),
        f"{SCRIPT}::test_batch_under_another_term_is_refused_whole[redis-server-nonce]",
    ),
    Guard(
        9,
        "election: the highest epoch seen is kept",
        Mutant(REPLACE("0"), "epoch-seen-kept"),
        f"{ELECTION}::test_the_highest_epoch_seen_is_never_forgotten",
    ),
    Guard(10, "acquire: the holder is still absent", Mutant(NEVER, "acquire-absent-still"), scenario("late_theft")),
    Guard(
        10,
        "acquire: presence is registered only with a subscriber",
        Mutant(DROP, "acquire-presence-counted"),
        scenario("uncounted_presence"),
    ),
    Guard(10, "presence: an absent leader is replaced", Mutant(NEVER, "presence-absence"), scenario("dead_leader")),
    Guard(10, "presence: absent at two polls", Mutant(DROP_LAST, "presence-absence"), scenario("absent_once")),
    Guard(10, "presence: a lost connection is reported at once", Mutant(NEVER, "presence-lost"), scenario("flapping")),
    Guard(
        10, "presence: a flapping connection is not used", Mutant(NEVER, "presence-flapping"), scenario("third_loss")
    ),
    Guard(
        10,
        "presence: each connection has its own channel",
        Mutant(REPLACE("'the-same'"), "presence-new-channel"),
        "tests/integration/store/test_presence.py::test_each_connection_has_a_channel_of_its_own",
    ),
    Guard(
        10,
        "presence: a reconnected connection counts as lost",
        Mutant(NEVER, "presence-reconnected"),
        "tests/integration/store/test_presence.py::test_a_connection_that_comes_back_by_itself_counts_as_lost",
    ),
    Guard(
        10,
        "presence: a silent connection is pinged",
        Mutant(DROP, "presence-ping"),
        "tests/integration/store/test_presence.py::test_a_server_that_stops_answering_is_noticed",
    ),
    Guard(
        10,
        "presence: no renewal between two absences",
        Mutant(DROP, "presence-unrenewed"),
        f"{ELECTION}::test_absence_counts_only_if_both_looks_agree",
    ),
    Guard(
        10,
        "presence: a new connection is registered at once",
        Mutant(NEVER, "presence-registered"),
        f"{ELECTION}::test_a_new_presence_connection_is_registered_at_once",
    ),
    Guard(
        10,
        "presence: a standby that lost its own connection knows of no death",
        Mutant(REPLACE("return state"), "presence-own-lost"),
        f"{ELECTION}::test_who_has_lost_its_own_presence_knows_of_no_death",
    ),
    Guard(
        11,
        "election: a lease under a nonce of this replica is free",
        Mutant(NEVER, "campaign-own-nonce"),
        "tests/unit/election/test_elector.py::test_lost_acquire_reply_delays_the_term_by_less_than_a_ttl",
    ),
    Guard(
        11,
        "election: nonces of earlier campaigns are kept",
        Mutant(REPLACE("(nonce,)"), "campaign-nonces"),
        f"{ELECTION}::test_lease_of_an_earlier_late_campaign_is_free_for_its_owner",
    ),
    Guard(12, "acquire: only the lease that the candidate saw", Mutant(NEVER, "acquire-compare"), scenario("race")),
    Guard(12, "renew: seq only rises", Mutant(NEVER, "renew-seq"), scenario("late_renewal")),
    Guard(12, "trust ends with its window", Mutant(ALWAYS, "trust-window"), scenario("cut_off")),
    Guard(
        12,
        "trust counts from the send",
        Mutant(REPLACE("state.term.until(now + timing.ttl)"), "trust-from-send"),
        scenario("slow_reply"),
    ),
    Guard(
        12,
        "election: each renewal attempt has a new number",
        Mutant(DROP, "renewal-number"),
        f"{ELECTION}::test_each_renewal_attempt_has_a_new_number",
    ),
    Guard(
        12,
        "election: trust ends a margin before the lease",
        Mutant(REPLACE("0.0"), "trust-margin"),
        "tests/unit/election/test_election_model.py::test_the_margin_bears_a_slow_leader_and_a_fast_standby[with]",
    ),
    Guard(
        13,
        "takeover: the start of an entry is recorded",
        Mutant(REPLACE("None"), "start-recorded"),
        f"{TAKEOVER}::test_new_entry_is_armed_so_that_the_next_leader_counts_alike",
    ),
    Guard(
        13,
        "takeover: an edited entry counts from the edit",
        Mutant(NEVER, "edited-counts-from-edit"),
        f"{TAKEOVER}::test_edited_entry_does_not_owe_instants_before_the_edit",
    ),
    Guard(
        13,
        "takeover: what an edit drops is recorded",
        Mutant(NEVER, "edit-drops-recorded"),
        f"{TAKEOVER}::test_instants_that_an_edit_drops_are_recorded_as_skipped",
    ),
    Guard(
        13,
        "takeover: an entry that was disabled counts from now",
        Mutant(DROP_LAST, "absent-counts-from-now"),
        f"{TAKEOVER}::test_entry_that_was_disabled_owes_nothing_and_counts_runs_from_zero",
    ),
    Guard(
        13,
        "takeover: nothing is due of the time that an entry was disabled without a leader",
        Mutant(NEVER, "off-without-leader"),
        f"{TAKEOVER}::test_entry_disabled_while_there_was_no_leader_owes_the_usual_lateness",
    ),
    Guard(
        13,
        "takeover: a stale row is not treated as disabled",
        Mutant(DROP, "stale-store"),
        f"{TAKEOVER}::test_stale_store_is_not_treated_as_disabled",
    ),
    Guard(
        13,
        "takeover: what another leader handled is not begun again",
        Mutant(DROP_LAST, "resumed-once"),
        f"{TAKEOVER}::test_entry_that_an_earlier_leader_enabled_continues_from_its_row",
    ),
    Guard(
        13,
        "takeover: a disabled entry with a new schedule counts from that edit",
        Mutant(DROP_LAST, "absent-and-changed"),
        f"{TAKEOVER}::test_enabled_entry_counts_from_its_edit_only_if_edited",
    ),
    Guard(
        13,
        "due queue: runs are counted from zero after an entry was disabled",
        Mutant(DROP, "runs-after-absence"),
        f"{TAKEOVER}::test_entry_that_was_disabled_owes_nothing_and_counts_runs_from_zero",
    ),
    Guard(
        13,
        "takeover: absence counts only if the store was read in this term",
        Mutant(ALWAYS, "absence-certain"),
        f"{TAKEOVER}::test_missing_entry_is_absent_only_if_the_store_was_read_in_this_term",
    ),
    Guard(
        13,
        "takeover: a deleted entry is remembered for days",
        Mutant(ALWAYS, "absence-remembered"),
        f"{TAKEOVER}::test_absent_row_is_kept_for_days_and_then_deleted",
    ),
    Guard(
        13,
        "scheduler: an entry that a release lacks is not deleted at once",
        Mutant(NEVER, "absence-not-at-once"),
        "tests/integration/scheduler/test_scheduler.py::test_entry_missing_for_an_hour_is_not_caught_up",
    ),
    Guard(
        13,
        "scheduler: an entry missing for an hour counts as deleted",
        Mutant(REPLACE("None"), "absence-after-an-hour"),
        "tests/integration/scheduler/test_scheduler.py::test_entry_missing_for_an_hour_is_not_caught_up",
    ),
    Guard(
        14,
        "dispatch: a withdrawn request is refused",
        Mutant(NEVER, "dispatch-request-withdrawn"),
        f"{SCRIPT}::test_withdrawn_request_is_not_carried_out[redis-server]",
    ),
    Guard(
        14,
        "dispatch: a step of a request is done once",
        Mutant(NEVER, "dispatch-step-once"),
        f"{SCRIPT}::test_request_step_is_done_once_and_moves_no_position[redis-server]",
    ),
    Guard(
        14,
        "dispatch: a request moves no position",
        Mutant(NEVER, "dispatch-request-no-row"),
        f"{SCRIPT}::test_request_step_is_done_once_and_moves_no_position[redis-server]",
    ),
    Guard(
        14,
        "dispatch: the pause is checked in the script",
        Mutant(NEVER, "dispatch-paused"),
        f"{SCRIPT}::test_paused_cluster_enqueues_nothing_of_the_schedule[redis-server]",
    ),
    Guard(
        14,
        "requests: a pause outlives the ledger",
        Mutant(NEVER, "pause-kept"),
        "tests/integration/leader/test_request_handler.py::test_new_leader_restores_a_pause_that_the_ledger_lost",
    ),
    Guard(
        14,
        "requests: an undelivered reply is repeated unchanged",
        Mutant(REPLACE("None"), "reply-repeated"),
        "tests/integration/leader/test_request_handler.py::test_lost_answer_is_repeated_unchanged",
    ),
    Guard(
        14,
        "requests: an unreachable broker delays only its own request",
        Mutant(REPLACE("raise"), "request-broker-away"),
        "tests/integration/leader/test_request_handler.py::test_unreachable_broker_holds_up_only_requests_that_need_it",
    ),
    Guard(
        15,
        "misfire: what `once` passes over is recorded",
        Mutant(DROP, "misfire-verdict"),
        "tests/unit/schedule/test_misfire.py::test_each_instant_gets_exactly_one_verdict",
    ),
    Guard(
        15,
        "dispatch: a row names the dispatch that wrote it",
        Mutant(DROP, "dispatch-own-row"),
        f"{SCRIPT}::test_repeated_batch_changes_nothing[redis-server]",
    ),
    Guard(
        15,
        "dispatch: a batch knows its own writes",
        Mutant(DROP, "dispatch-batch-own-writes"),
        f"{SCRIPT}::test_occurrence_that_is_twice_in_a_batch_is_enqueued_once[redis-server]",
    ),
    Guard(
        16,
        "shadow feed: a gap in the journal makes it read the ledger",
        Mutant(DROP_FIRST, "feed-gap"),
        f"{FEED}::test_trimmed_records_make_the_feed_read_the_ledger",
    ),
    Guard(
        16,
        "shadow feed: another incarnation makes it read the ledger",
        Mutant(NEVER, "feed-incarnation"),
        f"{FEED}::test_new_incarnation_of_the_ledger_moves_no_position_back",
    ),
    Guard(17, "stall: a stalled leader releases the lease", Mutant(NEVER, "stall-release"), scenario("hung_main_loop")),
    Guard(
        17,
        "election: after a release for cause others go first",
        Mutant(REPLACE("0.0"), "campaign-after-release"),
        f"{ELECTION}::test_after_a_release_for_cause_others_go_first",
    ),
    Guard(
        17,
        "election: a stalled replica does not campaign",
        Mutant(DROP, "stall-campaign"),
        f"{ELECTION}::test_stalled_replica_does_not_campaign",
    ),
    Guard(
        18,
        "acquire: another app is refused",
        Mutant(NEVER, "acquire-same-app"),
        f"{CONTRACT}::test_another_app_is_refused_even_if_the_lease_is_free[redis-server]",
    ),
    Guard(
        18,
        "acquire: a newer schema is refused",
        Mutant(NEVER, "acquire-newer-schema"),
        f"{CONTRACT}::test_newer_software_is_not_led_over[redis-server]",
    ),
    Guard(
        18,
        "ledger: rows of a newer version are refused",
        Mutant(NEVER, "ledger-newer-row"),
        "tests/unit/store/test_ledger.py::test_what_is_not_understood_is_no_row",
    ),
    Guard(
        18,
        "lease marker: another store's leader is at work",
        Mutant(NEVER, "mark-other-store"),
        f"{MARK}::test_second_store_is_refused_and_the_error_names_both",
    ),
    Guard(
        18,
        "lease marker: only the one that was watched is taken over",
        Mutant(DROP, "mark-unmoved"),
        f"{MARK}::test_marker_that_moved_since_the_last_check_is_not_replaced",
    ),
    Guard(
        18,
        "lease marker: the leader knows its store's incarnation",
        Mutant(DROP, "mark-store-incarnation"),
        f"{MARK}::test_late_marker_before_a_loss_delays_by_its_lifetime_at_most",
    ),
    Guard(
        18,
        "lease marker: a replica that is registered here is of this store",
        Mutant(NEVER, "mark-registered-replica"),
        f"{MARK}::test_marker_of_a_registered_replica_is_of_the_same_store",
    ),
    Guard(
        18,
        "lease marker: a standby of another store does not campaign",
        Mutant(DROP_LAST, "mark-foreign-standby"),
        f"{MARK}::test_marker_that_moves_is_never_abandoned",
    ),
    Guard(
        18,
        "lease marker: it is written before something is dispatched",
        Mutant(ALWAYS, "mark-kept-first"),
        f"{MARK}::test_marker_that_cannot_be_kept_prevents_dispatch",
    ),
    Guard(
        19,
        "occurrence: one spelling for an instant",
        Mutant(REPLACE("self.scheduled_at.isoformat()"), "instant-spelling"),
        "tests/unit/schedule/test_occurrence.py::test_instant_has_one_spelling",
    ),
    Guard(
        20,
        "dispatch: the epoch is compared although the nonce is the same",
        Mutant(NEVER, "term-epoch"),
        f"{SCRIPT}::test_clone_with_the_same_nonce_is_refused_by_epoch[redis-server]",
    ),
)

MUTANTS = {guard.name: guard.mutant for guard in GUARDS}

#: Those that `tests.mutation_run` takes out; the others have their scenarios.
WATCHED = tuple(guard for guard in GUARDS if not guard.scenario)


def guards_table() -> str:
    lines = ["| rule | guard | fails without it |", "|---|---|---|"]
    for guard in GUARDS:
        path, _, test = guard.test.removeprefix("tests/").partition("::")
        lines.append(f"| {guard.rule} | {guard.name} | `{path}` `{test}` |")
    return "\n".join(lines)

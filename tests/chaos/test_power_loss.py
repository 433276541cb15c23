"""The current fails, at any byte of the logs. What was acknowledged before is there, and as it was."""

from pathlib import Path

from tests.chaos.power import power_cuts


async def test_what_was_acknowledged_survives_a_power_cut_at_any_byte(tmp_path: Path) -> None:
    verdicts = await power_cuts(tmp_path, cuts=60, seed=8640)
    assert [verdict.details() for verdict in verdicts if not verdict.good] == []
    assert sum(verdict.jobs for verdict in verdicts) > 500

"""What a run is told whose images could not be used."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from small_caches import create, features_of, rows_of, sha_of

from featx.cache import Status
from featx.errors import TooManyFailedError
from featx.failures import check_failures


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (Status.UNREADABLE, "again, or accept"),
        (Status.UNDECODABLE, "again (--retry-failed tries unchanged ones too), or accept"),
    ],
)
def test_only_images_that_are_not_tried_on_every_run_need_to_be_asked_for(
    tmp_path: Path, status: Status, advice: str
) -> None:
    writer = create(tmp_path / "a.h5")
    writer.put(np.arange(8), features_of(8), sha_of(8))
    for row in (8, 9):
        writer.fail(row, status, "why")
    writer.commit()
    check_failures(writer.file, 0.2)
    with pytest.raises(TooManyFailedError) as error:
        check_failures(writer.file, 0.1)
    writer.close()
    assert f"run the same command {advice} them with --max-failed 0.2" in str(error.value)


@pytest.mark.parametrize(("failed", "n"), [(29, 100), (57, 100), (29, 50), (123, 150)])
def test_the_share_that_the_message_recommends_is_accepted(
    tmp_path: Path, failed: int, n: int
) -> None:
    writer = create(tmp_path / "a.h5", rows_of(n))
    writer.put(np.arange(failed, n), features_of(n - failed), sha_of(n - failed))
    for row in range(failed):
        writer.fail(row, Status.UNDECODABLE, "why")
    writer.commit()
    with pytest.raises(TooManyFailedError) as error:
        check_failures(writer.file, 0.1)
    recommended = re.search(r"--max-failed ([\d.]+)", str(error.value))
    assert recommended
    check_failures(writer.file, float(recommended[1]))
    writer.close()

"""What a run is told whose images could not be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_caches import create, features_of, sha_of

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

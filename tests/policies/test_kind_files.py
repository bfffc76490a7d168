"""Files of a host as people describe them: what settings for mounted file systems become."""

from typing import Any

import pytest
from django.core.exceptions import ValidationError

from engine.sources.files import FilesSource
from policies.kinds.files import TYPE
from policies.kinds.port import Reading
from policies.reading import check_settings


def source_of(**values: Any) -> FilesSource:
    made = TYPE.source(Reading("here", check_settings("files", {"roots": ["/mnt"], **values}), {}))
    assert isinstance(made, FilesSource)
    return made


@pytest.mark.parametrize(
    ("values", "walkers", "ignore_inode", "ignore_ctime"),
    [
        ({}, 1, False, False),
        ({"profile": "nas"}, 4, True, True),
        ({"profile": "parallel"}, 16, False, False),
        ({"profile": "parallel", "walkers": 40, "ignore_inode": True}, 40, True, False),
        ({"walkers": 2, "ignore_ctime": True}, 2, False, True),
    ],
)
def test_a_kind_of_file_system_stands_for_its_settings_and_each_can_be_chosen(
    values: dict[str, Any], walkers: int, ignore_inode: bool, ignore_ctime: bool
) -> None:
    made = source_of(**values)
    assert (made.walkers, made.ignore_inode, made.ignore_ctime) == (walkers, ignore_inode, ignore_ctime)


def test_a_folder_that_must_be_mounted_is_told_to_the_engine() -> None:
    assert source_of(must_be_mounted=True).must_be_mounted
    assert not source_of().must_be_mounted


@pytest.mark.parametrize("values", [{"profile": "tape"}, {"walkers": 65}, {"walkers": -1}])
def test_settings_that_mean_nothing_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        source_of(**values)

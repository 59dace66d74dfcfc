"""Reports of a part of the images: no format calls them anything else, or says that flags were looked for."""

from __future__ import annotations

import dataclasses

import pytest

from purifier.auditing.flags import FLAGS
from purifier.auditing.partial import Partial
from purifier.reporting.difference import difference
from purifier.reporting.formats import render
from purifier.reporting.summary import verdict


@pytest.fixture(scope="module")
def part(healthy):
    count = healthy.data["count"]
    return dataclasses.replace(healthy, partial=Partial(count, 2 * count, 3 * count, "one shard"), probes=0)


@pytest.mark.parametrize("to", ["html", "md", "evidence"])
def test_a_partial_report_has_no_verdict_and_says_that_flags_were_not_looked_for(part, to):
    text = render(part, to)
    assert "Partial report, no verdict" in text and "(one shard)" in text
    assert "ot looked for" in text
    assert "Nothing is wrong" not in text and "No sign was found" not in text and "None was found" not in text
    assert "older than" not in text


def test_its_flags_are_skipped_in_junit(part):
    assert render(part, "junit").count("<skipped />") == len(FLAGS)


def test_its_verdict_is_a_doubt_whatever_its_figures_are(part):
    found = verdict(part, [])
    assert found.light == "doubt" and found.title == "Partial report, no verdict"
    assert found.sentences[0].startswith(f"This report is about {part.partial} only.")


def test_reports_of_different_parts_are_not_of_the_same_images(part, healthy):
    count = healthy.data["count"]
    other = dataclasses.replace(part, partial=Partial(0, count, 3 * count, "one shard"))
    for one, another in ((part, other), (part, healthy), (healthy, other)):
        found = difference(one, another)
        assert not found.same_images and all(change.lost is None for change in found.changes)
    assert difference(part, dataclasses.replace(part)).same_images

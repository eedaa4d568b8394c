"""Timelines: what the trace and the page say of a run."""

import json
import re
import time

import pytest

from mkc.compiler import Compilation
from mkc.inspect.timeline import html, perfetto


def slices(trace: str) -> list[dict]:
    return [event for event in json.loads(trace)["traceEvents"] if event["ph"] == "X"]


def page_data(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_every_task_is_a_slice_on_the_thread_of_its_worker(mlp: Compilation, stamped) -> None:
    stamps = stamped(mlp, [1])
    work = [s for s in slices(perfetto(stamps, mlp.program)) if s["cat"] != "wait"]
    assert [s["tid"] for s in work] == stamps["worker"].tolist()
    assert [s["args"]["name"] for s in work] == list(mlp.program.names)
    assert work[0]["name"] == "linear layers.0"
    assert (work[0]["ts"], work[0]["dur"]) == (0.01, 0.1)  # us


def test_waiting_is_a_slice_of_its_own_right_before_the_work(mlp: Compilation, stamped) -> None:
    wait, work = slices(perfetto(stamped(mlp, [1])[:1], mlp.program))
    assert wait["cat"] == "wait"
    assert wait["ts"] + wait["dur"] == pytest.approx(work["ts"])


def test_no_slice_stands_for_no_waiting(mlp: Compilation, stamped) -> None:
    stamps = stamped(mlp, [1])
    stamps["ready"] = stamps["taken"]
    assert {s["cat"] for s in slices(perfetto(stamps, mlp.program))} == {"linear"}


def test_threads_are_named_and_ordered_as_workers(mlp: Compilation, stamped) -> None:
    events = json.loads(perfetto(stamped(mlp, [1]), mlp.program))["traceEvents"]
    assert [e["args"]["name"] for e in events if e["name"] == "thread_name"] == ["worker 0", "worker 1"]


def test_runs_of_one_task_are_counted_as_steps_of_its_section(two_sections: Compilation, stamped) -> None:
    found = slices(perfetto(stamped(two_sections, [2, 3]), two_sections.program))
    phases = {(s["args"]["section"], s["args"]["step"]) for s in found if s["cat"] != "wait"}
    assert phases == {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)}


def test_the_page_tells_sections_and_steps_apart(two_sections: Compilation, stamped) -> None:
    data = page_data(html(stamped(two_sections, [1, 2]), two_sections.program, "t", ["prompt", "decode"]))
    names = [name for name, _, _ in data["phases"]]
    assert names == ["prompt step 0", "decode step 0", "decode step 1"]
    assert all(a < b for _, a, b in data["phases"])


def test_the_page_has_every_run_in_nanoseconds_from_the_first(mlp: Compilation, stamped) -> None:
    stamps = stamped(mlp, [3])
    data = page_data(html(stamps, mlp.program))
    assert data["done"] == (stamps["done"] - stamps["taken"].min()).tolist()
    assert [data["tasks"][t][0] for t in data["task"]] == [mlp.program.names[t] for t in stamps["task"]]


def test_the_page_needs_nothing_else(mlp: Compilation, stamped) -> None:
    page = html(stamped(mlp, [1]), mlp.program)
    assert not re.search(r"https?:|src=|<link|@import|url\(", page)


def test_a_title_cannot_break_the_page(mlp: Compilation, stamped) -> None:
    page = html(stamped(mlp, [1]), mlp.program, "</script><b>")
    assert "</script><b>" not in page
    assert page_data(page)["title"] == "</script><b>"


def test_a_run_without_a_single_task_is_shown_too(mlp: Compilation, stamped) -> None:
    none = stamped(mlp, [1])[:0]
    assert page_data(html(none, mlp.program))["task"] == []
    assert slices(perfetto(none, mlp.program)) == []


def test_twenty_thousand_stamps_take_seconds_at_most(wide: Compilation, stamped) -> None:
    stamps = stamped(wide, [-(-20_000 // len(wide.program.tasks))])
    start = time.perf_counter()
    page, trace = html(stamps, wide.program), perfetto(stamps, wide.program)
    assert time.perf_counter() - start < 10
    assert len(page) < 3_000_000
    assert len(trace) < 20_000_000

"""Subject -> a folder: every stage, the page, pictures of the task graphs, and the timeline of one run."""

from pathlib import Path

from mkc.cli.subject import Subject
from mkc.compiler import Compilation
from mkc.inspect.account import Explanation
from mkc.inspect.colours import colours
from mkc.inspect.picture import picture
from mkc.inspect.stages import labels, write_stages
from mkc.inspect.taskgraph import critical_path
from mkc.inspect.timeline import html, perfetto
from mkc.ir.program import Words


def write_report(subject: Subject, folder: Path) -> list[tuple[str, str]]:
    """Everything but the timeline. A model of several kernels gets a folder for each. Returns (files, what they are)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "explain.txt").write_text(f"{Explanation.of(subject.compilations, subject.fallbacks)}\n")
    written = [("explain.txt", "what the model became")]
    single = len(subject.compilations) == 1
    for number, compilation in enumerate(subject.compilations):
        inside = "" if single else f"kernel-{number}/"
        written += [(inside + name, what) for name, what in _write_kernel(compilation, folder / inside)]
    return written


def write_timeline(subject: Subject, stamps: Words, folder: Path) -> list[tuple[str, str]]:
    """One run as a page of its own and as a trace for Perfetto."""
    (compilation,) = subject.compilations
    title = f"{subject.name} on {compilation.target.name} {compilation.target.arch}"
    sections = [section.graph.name for section in compilation.sections]
    (folder / "timeline.html").write_text(html(stamps, compilation.program, title, sections))
    (folder / "timeline.json").write_text(perfetto(stamps, compilation.program))
    return [("timeline.html", "one run, for a browser"), ("timeline.json", "the same, for ui.perfetto.dev")]


def _write_kernel(compilation: Compilation, folder: Path) -> list[tuple[str, str]]:
    files = write_stages(compilation, folder)
    texts, page = f"{files[0].name} to {files[-2].name}", files[-1].name
    written = [(texts, "every stage"), (page, "the kernel, one page that compiles on its own")]
    palette = colours(body.header for body in compilation.program.bodies)
    for label, section in zip(labels(compilation), compilation.sections, strict=True):
        name = f"graph{label}.svg"
        (folder / name).write_text(picture(section, palette))
        (folder / f"critical-path{label}.txt").write_text(f"{critical_path(section)}\n")
        written += [
            (name, "operators, and what each awaits"),
            (f"critical-path{label}.txt", "the longest chain of tasks"),
        ]
    return written
